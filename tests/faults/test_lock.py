"""Two runs never write to one folder."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from smat_peft.errors import CheckpointError
from smat_peft.meta_tuning.lock import output_lock
from tests.faults.small_run import make_trainer, resume
from tests.processes import in_a_process, in_another_run, kill


def from_another_process(folder: Path) -> str:
    """What another process is told that wants the folder: empty if it gets it."""
    reading, writing = os.pipe()

    def ask() -> int:
        try:
            with output_lock(folder):
                pass
        except CheckpointError as error:
            os.write(writing, str(error).encode())
        return 0

    assert in_another_run(ask) == 0
    os.close(writing)
    with os.fdopen(reading) as file:
        return file.read()


def test_a_second_run_is_refused_while_the_first_goes_on(tmp_path: Path) -> None:
    told: list[str] = []
    trainer = make_trainer(tmp_path / "run")
    update = trainer.update
    trainer.update = lambda *a: (told.append(from_another_process(tmp_path / "run")), update(*a))  # type: ignore
    trainer.train()
    assert len(told) == 3
    for message in told:
        assert message.startswith(f"{tmp_path / 'run'} is in use by another run (process {os.getpid()} on ")
    assert from_another_process(tmp_path / "run") == ""


def test_the_second_run_writes_nothing_and_clears_nothing_up(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_trainer(folder, max_steps=1).train()
    (folder / ".partial-1-checkpoint-2").mkdir()

    def second() -> int:
        with pytest.raises(CheckpointError, match="in use by another run"):
            resume(folder, max_steps=1).train()
        return 0

    with output_lock(folder):
        before = sorted(folder.rglob("*"))
        assert in_another_run(second) == 0
        assert sorted(folder.rglob("*")) == before
    resume(folder, max_steps=1).train()
    assert not (folder / ".partial-1-checkpoint-2").exists()
    assert not (folder / ".lock").exists()


def test_a_lock_goes_with_its_process_though_its_file_stays(tmp_path: Path) -> None:
    def die() -> int:
        with output_lock(tmp_path):
            kill()
        return 0

    assert in_a_process(die) == -9
    assert (tmp_path / ".lock").exists()
    with output_lock(tmp_path):
        pass


def test_processes_that_load_episodes_do_not_keep_the_lock_of_one_that_died(tmp_path: Path) -> None:
    reading, writing = os.pipe()

    def die() -> int:
        with output_lock(tmp_path):
            if os.fork() == 0:  # a process that loads episodes
                os.close(writing)
                os.read(reading, 1)  # until the test is done
                os._exit(0)
            kill()
        return 0

    assert in_a_process(die) == -9
    with output_lock(tmp_path):
        os.close(writing)
    os.close(reading)


def test_it_may_be_taken_twice_by_one_process(tmp_path: Path) -> None:
    with output_lock(tmp_path):
        with output_lock(tmp_path):
            pass
        assert "in use" in from_another_process(tmp_path)


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with caplog.at_level(logging.WARNING), output_lock(tmp_path):
        pass
    assert "is not locked, its file system has no locks" in caplog.text


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    lock = output_lock(tmp_path)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CheckpointError, match="cannot be written to: Read-only"):
        lock.__enter__()
