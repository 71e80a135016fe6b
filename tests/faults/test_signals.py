"""A run that is told to stop finishes its update, writes a checkpoint, and says so; told twice, it leaves."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from smat_peft.errors import RunStoppedError
from smat_peft.meta_tuning import signals
from smat_peft.meta_tuning.checkpoints import checkpoints
from tests.faults.small_run import NoiseEpisodes, assert_same, end_of, make_trainer, resume
from tests.processes import in_a_process


def signalled(*numbers: int, at: int = 1) -> NoiseEpisodes:
    """Episodes that send these signals to this process when one of them is asked for."""

    def send(index: int) -> None:
        for number in numbers if index == at else ():
            os.kill(os.getpid(), number)

    return NoiseEpisodes(send)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("checkpointing_steps", [0, 1])
def test_a_signal_ends_the_run_after_its_update_with_a_checkpoint(
    tmp_path: Path, number: signal.Signals, checkpointing_steps: int
) -> None:
    undisturbed = make_trainer(tmp_path / "whole", max_steps=4)
    undisturbed.train()
    before = signal.getsignal(number)
    settings = {"max_steps": 4, "checkpointing_steps": checkpointing_steps}
    trainer = make_trainer(tmp_path / "run", signalled(number), **settings)
    with pytest.raises(RunStoppedError, match=f"Stopped by {number.name} after update 2 of 4") as raised:
        trainer.train()
    assert raised.value.exit_status == 75
    assert signal.getsignal(number) == before
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    resumed = resume(tmp_path / "run", max_steps=4)
    resumed.train()
    assert_same(end_of(resumed), end_of(undisturbed))


def test_validation_that_was_due_is_made_up_for(tmp_path: Path) -> None:
    validated: list[int] = []
    trainer = make_trainer(tmp_path / "run", signalled(signal.SIGTERM))
    validate = trainer._validate
    trainer._validate = lambda: (validated.append(trainer.step), validate())  # type: ignore
    with pytest.raises(RunStoppedError):
        trainer.train()
    assert validated == [1]
    resumed = resume(tmp_path / "run")
    resumed.train()
    assert [record["step"] for record in resumed.log if "validation_accuracy" in record] == [1, 2, 3]


def test_a_signal_in_the_last_update_stops_before_what_follows_training(tmp_path: Path) -> None:
    with pytest.raises(RunStoppedError, match="after update 3 of 3"):
        make_trainer(tmp_path / "run", signalled(signal.SIGTERM, at=2)).train()
    resumed = resume(tmp_path / "run")
    assert resumed.step == 3
    resumed.train()
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-3"]


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SAME_REQUEST_SECONDS", 0.0)

    def run() -> int:
        make_trainer(tmp_path / "run", signalled(signal.SIGTERM, signal.SIGTERM)).train()
        return 0

    assert in_a_process(run) == -signal.SIGTERM
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-1"]


def test_a_request_that_a_launcher_passes_on_again_is_one(tmp_path: Path) -> None:
    with pytest.raises(RunStoppedError, match="after update 2"):
        make_trainer(tmp_path / "run", signalled(signal.SIGINT, signal.SIGINT)).train()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_of_a_run_leaves_those_that_load_episodes_at_work(
    tmp_path: Path, number: signal.Signals
) -> None:
    def run() -> int:
        os.setsid()
        trainer = make_trainer(tmp_path / "run", dataloader_num_workers=1, max_steps=6)
        update = trainer.update

        def updated(*arguments: Any) -> None:
            if trainer.step == 1:
                os.killpg(0, number)
            update(*arguments)

        trainer.update = updated  # type: ignore[method-assign]
        try:
            trainer.train()
        except RunStoppedError as stopped:
            return stopped.exit_status
        return 0

    assert in_a_process(run) == 75
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-2"]
