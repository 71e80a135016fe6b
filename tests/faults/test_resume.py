"""A run goes on from any checkpoint as if it had not been stopped, and only if it is the same run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from smat_peft.episodes.domain import Domain
from smat_peft.episodes.fixed import FixedEpisodes
from smat_peft.episodes.images import ImageTransform
from smat_peft.episodes.sampling import EpisodeSampler
from smat_peft.errors import CheckpointError
from smat_peft.meta_tuning.checkpoints import checkpoints, load_checkpoint
from smat_peft.meta_tuning.identity import fingerprint
from tests.faults.small_run import assert_same, end_of, make_trainer, resume, stop_before, tiny_vit

SHAPE: dict[str, Any] = {"transform": ImageTransform((16, 16)), "max_ways": 5, "max_support": 10, "queries": 1}
SCORES = [0.0, 0.4, 0.2, 0.3, 0.35]  # by step: the first stays the best


def domain(name: str, images: int = 3) -> Domain:
    pictures = [Image.new("RGB", (16, 16), (20 * number, 90, 200)) for number in range(images)]
    names = [f"class {number}" for number in range(8)]
    return Domain(name, dict.fromkeys(names, pictures), {"train": names}, frozenset())


def sampler(*domains: Domain, **settings: Any) -> EpisodeSampler:
    return EpisodeSampler(list(domains), "train", **SHAPE | settings)


def test_a_run_that_is_stopped_after_every_update_ends_as_one_that_is_not(tmp_path: Path) -> None:
    undisturbed = make_trainer(tmp_path / "whole", max_steps=4, episodes_per_step=2)
    undisturbed.train()
    for number in (2, 4, 6):
        # What draws from a global generator would see other numbers each time.
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002 - what is meant
        random.seed(number)
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path / "run", stop_before(number), max_steps=4, episodes_per_step=2).train()
    resumed = resume(tmp_path / "run", max_steps=4, episodes_per_step=2)
    resumed.train()
    assert_same(end_of(resumed), end_of(undisturbed))


@pytest.mark.parametrize("step", [1, 2])
def test_it_goes_on_from_any_checkpoint_that_is_left_and_twice_in_a_row(tmp_path: Path, step: int) -> None:
    whole = make_trainer(tmp_path / "whole", save_total_limit=0, max_steps=4)
    whole.learner.validate = lambda _: SCORES[whole.step]
    whole.train()
    for copy in ("one", "two"):
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / copy))
        for later in checkpoints(folder)[step:]:
            shutil.rmtree(later)
        again = resume(folder, save_total_limit=0, max_steps=4)
        again.learner.validate = lambda _, again=again: SCORES[again.step]
        again.train()
        assert again.best.step == 1
        assert_same(end_of(again), end_of(whole))


def test_processes_that_load_episodes_do_not_matter(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", dataloader_num_workers=2)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "run", stop_before(2)).train()
    resumed = resume(tmp_path / "run", dataloader_num_workers=1)
    resumed.train()
    assert_same(end_of(resumed), end_of(whole))


def test_a_run_may_move_to_another_folder_and_takes_its_best_adapter_along(tmp_path: Path) -> None:
    def scored(trainer: Any) -> Any:
        trainer.learner.validate = lambda _: 1 / trainer.step  # the first is the best
        return trainer

    whole = scored(make_trainer(tmp_path / "whole"))
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        scored(make_trainer(tmp_path / "run", stop_before(2))).train()
    moved = scored(make_trainer(tmp_path / "moved", resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2")))
    moved.train()
    assert_same(end_of(moved), end_of(whole))

    shutil.rmtree(tmp_path / "run" / "best")
    again = make_trainer(tmp_path / "again", resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    with pytest.raises(CheckpointError, match="the best adapter so far has to be beside the checkpoint"):
        again.train()


def as_format_1(folder: Path) -> None:
    """Write a run's checkpoints as the first version did: the arguments in the state, no description of the run."""
    for path in [*checkpoints(folder), *checkpoints(folder / "best")]:
        manifest = json.loads((path / "manifest.json").read_text())
        arguments = manifest.pop("run").get("arguments")
        state = json.loads((path / "state.json").read_text())
        if "best" in state:
            state |= {"arguments": arguments, "best_score": state.pop("best")[0]}
            del state["is_between_updates"]
        (path / "state.json").write_text(json.dumps(state))
        content = (path / "state.json").read_bytes()
        manifest["format_version"] = 1
        manifest["files"]["state.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_run_of_the_first_format_is_resumed_when_told_to_trust_its_data(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "run", stop_before(2)).train()
    as_format_1(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"backbone: weights was None, .*or --resume_anyway"):
        resume(tmp_path / "run")
    resumed = resume(tmp_path / "run", resume_anyway=True)
    resumed.train()
    found, expected = end_of(resumed), end_of(whole)
    assert_same(found["left"], expected["left"])
    assert_same(found["state"], expected["state"])


def test_newer_checkpoints_are_not_mixed_with_those_of_another_try(tmp_path: Path) -> None:
    make_trainer(tmp_path / "run", save_total_limit=2).train()
    make_trainer(tmp_path / "other").train()
    older = str(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(CheckpointError, match=r"checkpoint-3 is newer than .*checkpoint-2; resume from it, remove it"):
        make_trainer(tmp_path / "run", resume_from_checkpoint=older)
    with pytest.raises(CheckpointError, match="other holds another run"):
        make_trainer(tmp_path / "other", resume_from_checkpoint=older)


def test_the_manifest_says_what_run_it_is_of(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, sampler(domain("flags")), max_steps=1)
    trainer.train()
    run = load_checkpoint(tmp_path / "checkpoint-1").run
    assert run["arguments"] == dataclasses.asdict(trainer.arguments)
    assert run["adapter"]["default"]["num_experts"] == 2
    assert run["training data"]["domains"]["flags"]["images"] == 24
    assert run["environment"]["processes"] == 1
    assert run["environment"]["torch"] == torch.__version__
    frozen = trainer.tensors.frozen()
    assert run["backbone"]["weights"] == fingerprint(frozen)
    assert sum(tensor.numel() for tensor in frozen.values()) == sum(p.numel() for p in tiny_vit().parameters())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"delta_lr": 0.2}, "arguments: delta_lr was 0.1, is 0.2"),
        ({"max_steps": 9}, "arguments: max_steps was 3, is 9"),
        ({"experts": {"target_sparsity": 0.6}}, "adapter: default.target_sparsity was 0.5, is 0.6"),
        ({"experts": {"num_experts": 3}}, "adapter: default.num_experts was 2, is 3"),
        ({"vit": {"seed": 1}}, "backbone: weights was '"),
        ({"vit": {"layer_norm_eps": 1e-6}}, "backbone: configuration was '"),
        ({"train": sampler(domain("flags", 2))}, "training data: domains.flags.images was 24, is 16"),
        ({"train": sampler(domain("flags"), domain("signs"))}, "training data: domains.signs.classes was None, is 8"),
        ({"train": sampler(domain("flags"), seed=1)}, "training data: ways, shots, queries and draws was '"),
        ({"train": sampler(domain("flags"), shots=1)}, "training data: ways, shots, queries and draws was '"),
        (
            {"validation": FixedEpisodes([domain("flags")], "train", 2, **SHAPE)},
            "validation data: episodes",
        ),
    ],
)
def test_another_run_is_refused_and_what_differs_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], named: str
) -> None:
    usual: dict[str, Any] = {"train": sampler(domain("flags"))}
    usual["validation"] = FixedEpisodes([domain("flags")], "train", 1, **SHAPE)
    make_trainer(tmp_path, **usual).train()
    with pytest.raises(CheckpointError, match="is of another run: ") as raised:
        resume(tmp_path, **usual | changes)
    assert named in str(raised.value)
    assert str(raised.value).endswith("Give what it was made with, or --resume_anyway")
    if "num_experts" in named:
        return
    with caplog.at_level(logging.WARNING):
        resume(tmp_path, **usual | {"resume_anyway": True} | changes).train()
    assert named in caplog.text


def test_what_changes_nothing_may_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(tmp_path).train()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        resume(tmp_path, save_total_limit=3, checkpointing_steps=2, dataloader_num_workers=1, dataloader_cache_mib=1)
    assert not caplog.text


def test_a_run_that_ran_out_of_memory_goes_on_with_less(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(tmp_path).train()
    with caplog.at_level(logging.WARNING):
        resume(tmp_path, max_batch_size=4, episodes_per_merge=1)
    assert "arguments: max_batch_size was None, is 4" in caplog.text


def test_other_library_versions_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trainer(tmp_path, max_steps=1).train()
    monkeypatch.setattr("smat_peft.meta_tuning.identity.version", lambda _: "9.9")
    with caplog.at_level(logging.WARNING):
        resume(tmp_path, max_steps=1)
    assert "environment: torch was" in caplog.text


def test_a_fingerprint_is_of_names_types_shapes_and_values() -> None:
    tensors = {"a": torch.arange(4.0), "b": torch.ones((), dtype=torch.bfloat16)}
    others = [
        {"a": tensors["a"]},
        {"c": tensors["a"], "b": tensors["b"]},
        tensors | {"a": tensors["a"].view(2, 2)},
        tensors | {"a": tensors["a"].view(torch.int32)},
        tensors | {"a": torch.tensor([0.0, 1.0, 2.0, 3.0000002])},
    ]
    digests = {fingerprint(each) for each in [tensors, *others]}
    assert len(digests) == len(others) + 1
    assert fingerprint(dict(reversed(tensors.items()))) == fingerprint(tensors)
