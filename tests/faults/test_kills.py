"""A run that is killed at any point of writing a checkpoint goes on, and ends as if it had not been."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from smat_peft.errors import CheckpointError, SmatError
from smat_peft.files import moving_into, write_text
from smat_peft.meta_tuning.checkpoints import checkpoints, find_checkpoint, load_checkpoint, save_checkpoint
from smat_peft.meta_tuning.trainer import MetaTrainer
from tests.faults.disk import disk
from tests.faults.small_run import assert_same, end_of, make_trainer, resume, stop_before
from tests.processes import in_a_process, kill

CUT = 2  # the update after which the disk is watched: the adapter is then the best so far, too
Points = Callable[[str], Iterator[tuple[int, str, Path]]]
ERRORS = [errno.ENOSPC, errno.EIO, errno.EROFS]


def rising(trainer: MetaTrainer) -> MetaTrainer:
    """Accuracies in validation that rise, so that each is the best so far."""
    trainer.learner.validate = lambda _: trainer.step / 10  # type: ignore[method-assign]
    return trainer


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    trainer = rising(make_trainer(tmp_path_factory.mktemp("undisturbed") / "run"))
    trainer.train()
    return end_of(trainer)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed before its second update."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(KeyboardInterrupt):
        rising(make_trainer(folder, stop_before(CUT - 1))).train()
    return folder


def train_with(trainer: MetaTrainer, fault: Callable[[], None], at: int) -> list[str]:
    """Train, watching the disk after update `CUT`; returns what was done to it."""
    follow_up, done = trainer._follow_up, []

    def watched(bar: Any) -> None:
        if trainer.step != CUT:
            return follow_up(bar)
        with disk(fault, at) as operations:
            try:
                return follow_up(bar)
            finally:
                done.extend(operations)

    trainer._follow_up = watched  # type: ignore[method-assign]
    trainer.train()
    return done


@pytest.fixture(scope="module")
def operations(stopped: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What is done to the disk after update `CUT` where nothing goes wrong."""
    whole = Path(shutil.copytree(stopped, tmp_path_factory.mktemp("whole") / "run"))
    return train_with(rising(resume(whole)), lambda: None, -1)


@pytest.fixture
def points(stopped: Path, operations: list[str], tmp_path: Path) -> Points:
    """A function that gives the number and the name of each operation with a copy of the folder of its own."""

    def points(place: str) -> Iterator[tuple[int, str, Path]]:
        for at, operation in enumerate(operations):
            yield at, operation, Path(shutil.copytree(stopped, tmp_path / place / f"{at}"))

    return points


def test_a_kill_at_any_operation_of_a_checkpoint_changes_nothing(
    undisturbed: dict[str, Any], operations: list[str], points: Points, capsys: pytest.CaptureFixture[str]
) -> None:
    for at, operation, folder in points("killed"):

        def die(folder: Path = folder, at: int = at) -> int:
            train_with(rising(resume(folder)), kill, at)
            return 0

        assert in_a_process(die) == -9, operation
        load_checkpoint(find_checkpoint(folder, "latest"))
        resumed = rising(resume(folder))
        resumed.train()
        assert_same(end_of(resumed), undisturbed, f"killed at {at}, {operation}")
    with capsys.disabled():
        print(f"\nkilled at each of {len(operations)} points of writing a checkpoint and the best adapter")
    kinds = {operation.split()[0] for operation in operations}
    assert kinds == {"mkdir", "write", "half", "chmod", "fsync", "rename", "unlink", "rmdir"}


def test_an_error_of_the_disk_at_any_operation_of_a_checkpoint_is_a_clear_one(
    undisturbed: dict[str, Any], operations: list[str], points: Points, capsys: pytest.CaptureFixture[str]
) -> None:
    for code in ERRORS:
        message = os.strerror(code)

        def fail(code: int = code, message: str = message) -> None:
            raise OSError(code, message)

        for at, operation, folder in points(str(code)):
            with pytest.raises(SmatError, match=rf"cannot (write|remove) .*: {message}"):
                train_with(rising(resume(folder)), fail, at)
            assert load_checkpoint(find_checkpoint(folder, "latest")).state["step"] in (CUT - 1, CUT)
            if code == ERRORS[at % len(ERRORS)]:
                resumed = rising(resume(folder))
                resumed.train()
                assert_same(end_of(resumed), undisturbed, f"{message} at {at}, {operation}")
    with capsys.disabled():
        print(f"\n{len(ERRORS)} errors of the disk at each of {len(operations)} points")


def save(folder: Path, value: float) -> None:
    save_checkpoint(folder, 7, {"weight": torch.full((64,), value)}, {"value": value})


@pytest.mark.parametrize("end", ["killed", "failed"])
def test_a_checkpoint_that_is_written_again_is_there_at_any_moment(tmp_path: Path, end: str) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "no space")

    save(tmp_path / "whole", 1.0)
    with disk() as operations:
        save(tmp_path / "whole", 2.0)
    values = []
    for at, operation in enumerate(operations):
        folder = tmp_path / str(at)
        save(folder, 1.0)
        if end == "killed":

            def die(folder: Path = folder, at: int = at) -> int:
                with disk(kill, at):
                    save(folder, 2.0)
                return 0

            assert in_a_process(die) == -9, operation
        else:
            with disk(fail, at), pytest.raises(CheckpointError):
                save(folder, 2.0)
        (found,) = checkpoints(folder)
        tensors, state, _ = load_checkpoint(found)
        assert state == {"value": float(tensors["weight"][0])}
        values.append(state["value"])
        save(folder, 3.0)
        assert load_checkpoint(checkpoints(folder)[0]).state == {"value": 3.0}
        assert (folder / "checkpoint-7") in checkpoints(folder)
    assert values == sorted(values)
    assert set(values) == {1.0, 2.0}


@pytest.mark.parametrize("limit", [0, 100, 300])
def test_a_disk_that_is_really_full_is_one_error(tmp_path: Path, limit: int) -> None:
    def write() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(CheckpointError, match=rf"cannot write .*checkpoint-7: .*{os.strerror(errno.EFBIG)}"):
            save(tmp_path, 1.0)
        return 7

    assert in_a_process(write) == 7
    assert list(tmp_path.iterdir()) == []


def test_a_kill_while_the_adapter_is_saved_leaves_each_file_whole(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", max_steps=1)
    trainer.train()
    with disk() as operations:
        trainer.save_model(tmp_path / "whole")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert set(whole) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    for at, operation in enumerate(operations):
        folder = tmp_path / str(at)

        def die(folder: Path = folder, at: int = at) -> int:
            with disk(kill, at):
                trainer.save_model(folder)
            return 0

        assert in_a_process(die) == -9, operation
        for path in folder.glob("[!.]*"):
            assert path.read_bytes() == whole[path.name], operation


def test_files_have_the_mode_that_the_umask_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        trainer = make_trainer(tmp_path / "run", max_steps=1)
        trainer.train()
        trainer.save_model()
        write_text(tmp_path / "run" / "metrics.json", "{}")
        with moving_into(tmp_path / "run") as scratch:
            write_text(scratch / "below" / "file", "")
    finally:
        os.umask(before)
    for path in (tmp_path / "run").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path


def test_what_a_dead_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    shutil.copytree(tmp_path / "checkpoint-1", tmp_path / "checkpoint-1.replaced")
    for name in (".partial-1-checkpoint-2", "best/.partial-1-checkpoint-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tensors.safetensors").touch()
    (tmp_path / ".partial-1-metrics.json").touch()
    resume(tmp_path, max_steps=1).train()
    names = {path.name for path in [*tmp_path.iterdir(), *(tmp_path / "best").iterdir()]}
    assert names == {"best", "checkpoint-1"}
