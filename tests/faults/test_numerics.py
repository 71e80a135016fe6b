"""What is not finite, too large for half precision, or too large for memory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from smat_peft.errors import SmatError
from smat_peft.meta_tuning.checkpoints import checkpoints
from smat_peft.meta_tuning.processes import create_accelerator
from smat_peft.meta_tuning.trial import replay
from tests.faults.small_run import (
    NoiseEpisodes,
    assert_same,
    end_of,
    make_trainer,
    noise_episode,
    resume,
    stop_before,
)


def scaled(tmp_path: Path, train: Any = None, *, name: str = "scaled", goes_on: bool = False, **settings: Any) -> Any:
    """A trainer with a gradient scaler, on the CPU."""
    accelerator = create_accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", **{"init_scale": 1024.0, "growth_interval": 2} | settings)
    make = resume if goes_on else make_trainer
    return make(tmp_path / name, train, accelerator=accelerator, max_steps=4)


def test_loss_scaling_changes_the_range_and_not_the_update(tmp_path: Path) -> None:
    plain = make_trainer(tmp_path / "plain", max_steps=4)
    trainer = scaled(tmp_path)
    plain.train()
    trainer.train()
    for name, tensor in plain.tensors.learned().items():
        torch.testing.assert_close(trainer.tensors.learned()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    assert trainer.accelerator.scaler.get_scale() == 1024 * 2**2  # once for every two updates


def test_the_state_of_loss_scaling_is_resumed(tmp_path: Path) -> None:
    whole = scaled(tmp_path, name="whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        scaled(tmp_path, stop_before(3)).train()
    resumed = scaled(tmp_path, goes_on=True)
    assert resumed.accelerator.scaler.state_dict()["_growth_tracker"] == 1
    resumed.train()
    assert_same(end_of(resumed), end_of(whole))


def test_a_scale_that_is_too_large_is_lowered_and_is_no_failure(tmp_path: Path) -> None:
    trainer = scaled(tmp_path, init_scale=2.0**127, backoff_factor=2.0**-117)
    before = {name: tensor.clone() for name, tensor in trainer.tensors.learned().items() if "router." not in name}
    next(iter(trainer.groups.delta.values())).register_hook(lambda gradient: gradient * 2.0**20)
    trainer.step = 1
    trainer.update([noise_episode(0)])
    assert trainer.accelerator.scaler.get_scale() == 1024
    assert trainer.skipped == 0
    for name, tensor in before.items():  # neither optimiser has made a step
        assert torch.equal(trainer.tensors.learned()[name], tensor), name
    trainer.update([noise_episode(1)])
    assert any(not torch.equal(trainer.tensors.learned()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("scale", [None, 1.0])
def test_a_gradient_that_is_not_finite_leaves_the_update_out(tmp_path: Path, scale: float | None) -> None:
    trainer = make_trainer(tmp_path / "run") if scale is None else scaled(tmp_path, init_scale=scale)
    trainer.step = 2
    before = {name: tensor.clone() for name, tensor in trainer.tensors.learned().items() if "router." not in name}
    gate = next(iter(trainer.groups.delta.values()))
    gate.register_hook(lambda gradient: gradient * float("nan"))
    trainer.update([noise_episode(0)])
    assert trainer.skipped == 1
    for name, tensor in before.items():
        assert torch.equal(trainer.tensors.learned()[name], tensor), name
    assert all(parameter.grad is None for parameter in trainer.groups.all().values())


def test_several_updates_in_a_row_stop_the_run_with_a_checkpoint_to_replay_them_from(tmp_path: Path) -> None:
    settings = {"episodes_per_step": 2, "max_steps": 6, "max_skipped_steps": 2, "checkpointing_steps": 0}
    train = NoiseEpisodes(broken={3, 4})
    with pytest.raises(SmatError, match=r"in 2 updates in a row, those of training episodes 2 to 5 of seed 0.*replay"):
        make_trainer(tmp_path / "run", train, **settings).train()
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-3"]
    trainer = resume(tmp_path / "run", train, **settings)
    before = {name: tensor.clone() for name, tensor in trainer.tensors.all().items()}
    found = replay(trainer, range(2, 6))
    assert_same(trainer.tensors.all(), before)
    sums = {each.episode.index: sum(each.terms.values()) for each in found}
    assert {index for index, total in sums.items() if not torch.isfinite(torch.tensor(total))} == {3, 4}
    norms = {each.episode.index for each in found if torch.isfinite(torch.tensor(each.gradient_norm))}
    assert norms == {2, 5}


def test_a_replayed_episode_has_the_loss_that_it_has_alone(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", episodes_per_step=2)
    (seen,) = replay(trainer, [5])
    alone = make_trainer(tmp_path / "alone", episodes_per_step=1)
    terms = alone.learner([noise_episode(5)])
    assert seen.terms == pytest.approx({name: term.item() for name, term in terms.items()})


def too_large() -> None:
    torch.empty(2**60)  # what the allocator says is what is to be understood


@pytest.mark.parametrize("where", ["probe", "episode"])
def test_an_episode_that_exhausts_memory_is_tried_again_in_smaller_chunks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    whole = make_trainer(tmp_path / "whole", max_steps=2)
    whole.train()
    trainer = make_trainer(tmp_path / "run", max_steps=2)
    compute, sizes = getattr(trainer.learner, where), []

    def limited(*arguments: Any) -> Any:
        sizes.append(trainer.learner.chunks.size)
        if sizes[-1] is None:
            too_large()
        return compute(*arguments)

    monkeypatch.setattr(trainer.learner, where, limited)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert sizes == [None, 3, None, 3]  # of 6 + 6 images a quarter
    assert "episode noise 0 of 6 + 6 images does not fit in memory: trying again with 3 images at a time" in caplog.text
    for name, tensor in whole.tensors.learned().items():
        torch.testing.assert_close(trainer.tensors.learned()[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_an_episode_that_does_not_fit_even_so_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path / "run", max_batch_size=4)
    calls = []
    monkeypatch.setattr(trainer.learner, "episode", lambda *_: (calls.append(1), too_large()))
    with pytest.raises(
        SmatError, match=r"episode noise 0 of 6 \+ 6 images does not fit in memory, not even 1 at a time"
    ):
        trainer.train()
    assert len(calls) == 2
    assert trainer.learner.chunks.size == 4


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path / "run")
    monkeypatch.setattr(trainer.learner, "episode", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        trainer.train()
