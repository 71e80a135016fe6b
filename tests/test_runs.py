"""Runs of the meta-tuner side by side: so many at a time, each in its folder, those that wait for others later."""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml

from comparison import runs
from comparison.jobs import add_jobs, in_processes
from comparison.runs import LOG, merged, run_in
from smat_peft.errors import ConfigurationError


@pytest.mark.usefixtures("threads_for_processes")
def test_so_many_are_under_way_at_a_time_and_what_waits_comes_when_the_others_are_done() -> None:
    lock, now, most, done = threading.Lock(), [0], [0], set[int]()

    def one(number: int) -> int:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.01)
        with lock:
            now[0] -= 1
        return number * number

    def work(number: int) -> Callable[[], int] | None:
        return None if number == 0 and len(done) < 5 else partial(one, number)

    order = []
    for number, square in in_processes(work, range(6), 2, "squares", "number"):
        assert square == number * number
        done.add(number)
        order.append(number)
    assert most == [2]
    assert sorted(order) == list(range(6))
    assert order[-1] == 0


@pytest.mark.usefixtures("threads_for_processes")
def test_what_waits_for_ever_is_left_out() -> None:
    assert not list(in_processes(lambda _: None, [1, 2], 2, "nothing", "number"))


def test_a_process_that_is_killed_ends_it_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # it is set for the process, and is as it was when the test ends
    with pytest.raises(ConfigurationError, match=r"a process was killed.*start the command again to go on"):
        list(in_processes(lambda code: partial(os._exit, code), [9], 1, "killed", "run"))


@pytest.mark.parametrize("given", ["0", "-1", "two"])
def test_jobs_are_one_or_more(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_jobs(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--jobs", given])
    assert f"must be at least 1, got {given}" in capsys.readouterr().err


def test_a_run_that_was_cut_is_gone_on_with_and_keeps_no_checkpoint_when_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def meta_tune(words: list[str]) -> int:
        calls.append(words)
        print("as it went")
        (tmp_path / "checkpoint-1").mkdir(exist_ok=True)
        return len(calls) % 2  # the first fails

    monkeypatch.setattr(runs, "meta_tune", meta_tune)
    assert not run_in(tmp_path, {"seed": 3}, 1)
    assert (tmp_path / "checkpoint-1").is_dir()
    assert run_in(tmp_path, {"seed": 3}, 1)
    assert [words[1:] for words in calls] == [[], ["--resume_from_checkpoint=latest"]]
    assert not (tmp_path / "checkpoint-1").exists()
    assert (tmp_path / LOG).read_text() == "as it went\n" * 2
    settings = yaml.safe_load(Path(calls[0][0]).read_text())
    assert settings == {"seed": 3, "output_dir": str(tmp_path), "threads": 1}


def test_whatever_goes_wrong_in_a_run_is_in_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "meta_tune", None)
    assert not run_in(tmp_path, {}, 1)
    assert "TypeError" in (tmp_path / LOG).read_text()


def test_a_later_recipe_stands_before_an_earlier_one(tmp_path: Path) -> None:
    for name, text in (("first", "seed: 1\nways: 5\n"), ("second", "seed: 2\n")):
        (tmp_path / name).write_text(text)
    assert merged([tmp_path / "first", tmp_path / "second"]) == {"seed": 2, "ways": 5}
