"""A run of a tiny model on drawn episodes, and how to compare the ends of two."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor
from transformers import ViTConfig, ViTModel

from smat_peft import MetaTrainer, MetaTuningArguments, SMATConfig
from smat_peft.episodes.episode import Episode
from smat_peft.meta_tuning import lock
from smat_peft.meta_tuning.checkpoints import checkpoints, load_checkpoint

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


def noise_episode(index: int) -> Episode:
    """Classes with a centre each, and noise around it."""
    generator = torch.Generator().manual_seed(index)
    labels = torch.arange(WAYS).repeat(SHOTS)
    centres = torch.randn(WAYS, 3, 16, 16, generator=generator)
    support, query = (centres[labels] + torch.randn(len(labels), 3, 16, 16, generator=generator) for _ in range(2))
    return Episode(support, labels, query, labels, "noise", index)


class NoiseEpisodes:
    """Such episodes by number; `before` is called with each number first."""

    def __init__(self, before: Callable[[int], None] = lambda _: None) -> None:
        self.before = before

    def __getitem__(self, index: int) -> Episode:
        self.before(index)
        return noise_episode(index)


def tiny_vit(seed: int = 0, **changes: Any) -> ViTModel:
    """A ViT of one layer, `[N, 3, 16, 16]` -> `[N, 8]`."""
    settings = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(seed)
    config = ViTConfig(**settings | {"image_size": 16, "patch_size": 8} | changes)
    return ViTModel(config, add_pooling_layer=False).eval()


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


def in_a_process(work: Callable[[], int]) -> int:
    """Run something in a copy of this process; returns its exit status, negative for a signal, as subprocess does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons dislike fork in a process with threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            status = work()
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_another_run(work: Callable[[], int]) -> int:
    """The same, in a process that holds no locks."""

    def run() -> int:
        lock._held.clear()
        return work()

    return in_a_process(run)


def kill() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)
