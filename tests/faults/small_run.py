"""A run of a tiny model on drawn episodes, and how to compare the ends of two."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor
from transformers import ViTModel

from smat_peft import MetaTrainer, MetaTuningArguments, SMATConfig
from smat_peft.episodes.episode import Episode
from smat_peft.meta_tuning.checkpoints import checkpoints, load_checkpoint
from tests.small_models import make_vit

WAYS, SHOTS = 3, 2
SETTINGS: dict[str, Any] = {
    "max_steps": 3,
    "episodes_per_step": 1,
    "warmup_steps": 1,
    "delta_lr": 0.1,
    "gate_lr": 1e3,
    "multiplier_lr": 0.5,
    "router_lr": 1e-2,
    "checkpointing_steps": 1,
    "validation_steps": 1,
    "logging_steps": 2,
    "save_total_limit": 1,
}
EXPERTS: dict[str, Any] = {"num_experts": 2, "target_sparsity": 0.5}


def noise_episode(index: int, queries: int = SHOTS) -> Episode:
    """Classes with a centre each, and noise around it; so many query images a class."""
    generator = torch.Generator().manual_seed(index)
    centres = torch.randn(WAYS, 3, 16, 16, generator=generator)
    labels = [torch.arange(WAYS).repeat(count) for count in (SHOTS, queries)]
    support, query = (centres[each] + torch.randn(len(each), 3, 16, 16, generator=generator) for each in labels)
    return Episode(support, labels[0], query, labels[1], "noise", index)


class NoiseEpisodes:
    """Such episodes by number; `before` is called with each number first, and the `broken` ones are not finite."""

    def __init__(self, before: Callable[[int], None] = lambda _: None, broken: Collection[int] = ()) -> None:
        self.before, self.broken = before, broken

    def __getitem__(self, index: int) -> Episode:
        self.before(index)
        episode = noise_episode(index)
        if index in self.broken:
            episode.query[0] = float("nan")
        return episode


def stop_before(number: int) -> NoiseEpisodes:
    """Episodes of a run that is interrupted, as by Ctrl-C, when it asks for this one."""

    def stop(index: int) -> None:
        if index == number:
            raise KeyboardInterrupt

    return NoiseEpisodes(stop)


def tiny_vit(seed: int = 0, **changes: Any) -> ViTModel:
    """A ViT of one layer, `[N, 3, 16, 16]` -> `[N, 5, 8]`."""
    return make_vit(seed, **{"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 16} | changes)


def make_trainer(
    output_dir: Path,
    train: Any = None,
    *,
    vit: dict[str, Any] | None = None,
    experts: dict[str, Any] | None = None,
    validation: Any = None,
    accelerator: Any = None,
    **changes: Any,
) -> MetaTrainer:
    """A trainer of the tiny model; the same for the same arguments."""
    backbone = tiny_vit(**vit or {})
    torch.manual_seed(0)
    model = get_peft_model(backbone, SMATConfig(**EXPERTS | (experts or {})))
    arguments = MetaTuningArguments(output_dir=str(output_dir), **SETTINGS | changes)
    validation = [noise_episode(1000 + number) for number in range(2)] if validation is None else validation
    return MetaTrainer(model, arguments, train or NoiseEpisodes(), validation, accelerator=accelerator)


def resume(output_dir: Path, train: Any = None, **changes: Any) -> MetaTrainer:
    """The trainer that goes on in a folder, or begins where there is no checkpoint."""
    latest = "latest" if checkpoints(output_dir) else None
    return make_trainer(output_dir, train, resume_from_checkpoint=latest, **changes)


def end_of(trainer: MetaTrainer) -> dict[str, Any]:
    """All that a run ends with: the adapter that is left, the last checkpoint's tensors, the figures, the files."""
    tensors, state, _ = load_checkpoint(checkpoints(trainer.output_dir)[-1])
    files = {str(path.relative_to(trainer.output_dir)) for path in trainer.output_dir.rglob("*")}
    left = {name: tensor.clone() for name, tensor in trainer.tensors.learned().items()}
    return {"left": left, "last": tensors, "state": state, "log": trainer.log, "files": files}


def assert_same(found: Any, expected: Any, name: str = "end") -> None:
    """Two such ends are the same to the bit, but for how long they took."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), name
        for key in expected.keys() - {"seconds"}:
            assert_same(found[key], expected[key], f"{name}/{key}")
    elif isinstance(expected, Tensor):
        assert torch.equal(found, expected), name
    else:
        assert found == expected, name


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """||a - b|| / ||b|| over all tensors together: a key's bias alone has no gradient but rounding."""
    assert ours.keys() == theirs.keys()
    a, b = (torch.cat([tensors[name].double().flatten() for name in theirs]) for tensors in (ours, theirs))
    return float((a - b).norm() / b.norm())
