"""Several processes do what one does, and end together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from smat_peft.meta_tuning.checkpoints import checkpoints, load_checkpoint
from smat_peft.meta_tuning.tensors import MODEL
from tests.faults.process_worker import CUT, UPDATES, train, trainer_in
from tests.faults.small_run import distance
from tests.processes import launch

WORKER = Path(__file__).with_name("process_worker.py")


def last(folder: Path) -> dict[str, Tensor]:
    """The adapter and multipliers after all updates."""
    latest = checkpoints(folder)[-1]
    assert latest.name == f"checkpoint-{UPDATES}"
    return {name: tensor for name, tensor in load_checkpoint(latest).tensors.items() if name.startswith(MODEL)}


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train(folder)
    return folder


@pytest.mark.parametrize("processes", [2, 4])
def test_they_learn_what_one_does_also_where_an_episode_of_one_is_not_finite(
    alone: Path, tmp_path: Path, processes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = launch(processes, WORKER, "train", tmp_path)
    assert ended.returncode == 0, ended.stderr
    ours, theirs = report(tmp_path), report(alone)
    assert (ours["processes"], theirs["processes"]) == (processes, 1)
    assert ours["skipped"] == theirs["skipped"] == 1
    gradients = distance(*(load_file(folder / "gradients.safetensors") for folder in (tmp_path, alone)))
    adapter = distance(last(tmp_path), last(alone))
    with capsys.disabled():
        print(
            f"\n{processes} processes and one: gradients {gradients:.1e} apart, after {UPDATES} updates {adapter:.1e}"
        )
    assert gradients < 1e-6
    assert 0 < adapter < 1e-4
    for one, other in zip(ours["log"], theirs["log"], strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_a_lost_process_ends_the_others_with_a_message_and_a_whole_checkpoint(alone: Path, tmp_path: Path) -> None:
    ended = launch(2, WORKER, "lose", tmp_path)
    assert ended.returncode != 0
    assert "another process of this run is gone, in update" in ended.stderr
    assert "go on with --resume_from_checkpoint latest" in ended.stderr
    (latest,) = checkpoints(tmp_path)
    assert load_checkpoint(latest).state["step"] == CUT
    resumed = trainer_in(tmp_path)
    resumed.resume(latest)
    resumed.train()
    assert distance(last(tmp_path), last(alone)) < 1e-4


def test_a_signal_to_one_process_stops_all_after_the_same_update(tmp_path: Path) -> None:
    ended = launch(2, WORKER, "stop", tmp_path)
    assert ended.returncode != 0  # torchrun's own, whatever that of the processes is
    assert ended.stderr.count(f"after update {CUT + 1} of {UPDATES}, with a checkpoint") == 2
    assert "exitcode  : 75" in ended.stderr
    (latest,) = checkpoints(tmp_path)
    assert load_checkpoint(latest).state["step"] == CUT + 1
