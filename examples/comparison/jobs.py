"""Pieces of work in processes of their own, so many at a time, with a bar."""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from smat_peft.errors import ConfigurationError, RunStoppedError

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """The argument `--jobs`."""
    parser.add_argument("--jobs", type=_at_least_one, default=os.cpu_count() or 1, help="runs at a time")


def threads_of(jobs: int) -> int:
    """CPU threads for each of so many processes."""
    return max(1, (os.cpu_count() or 1) // jobs)


def in_processes(
    work: Callable[[Piece], Callable[[], Result] | None], pieces: Sequence[Piece], jobs: int, title: str, unit: str
) -> Iterator[tuple[Piece, Result]]:
    """Do all pieces of work; each as it is done, with its result.

    Args:
        work: Makes a piece's work, which must be picklable; None while the piece has to wait for others. What waits
            for one that failed is left out.
        pieces: What is to be done, the first first.
        jobs: How many at a time.
        title: Of the bar.
        unit: Of the bar: what a piece is.

    Raises:
        RunStoppedError: The user interrupts it, which the processes see, too.
        ConfigurationError: A process was killed.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads_of(jobs))  # of the processes to come
    left, running = list(pieces), dict[Future[Result], Piece]()
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(jobs, context, max_tasks_per_child=1) as pool,
        tqdm(total=len(left), desc=title, unit=unit) as bar,
    ):
        while True:
            for piece in left[:]:
                if len(running) < jobs and (task := work(piece)) is not None:
                    left.remove(piece)
                    running[pool.submit(task)] = piece
            if not running:
                return
            bar.set_postfix_str("; ".join(str(piece) for piece in running.values()))
            try:
                finished = [(running.pop(done), done.result()) for done in wait(running, None, FIRST_COMPLETED).done]
            except KeyboardInterrupt:
                raise RunStoppedError("stopped; start the command again to go on") from None
            except BrokenProcessPool as error:
                raise ConfigurationError(
                    "a process was killed, maybe for want of memory, of which fewer --jobs need less; "
                    "start the command again to go on"
                ) from error
            for each in finished:
                yield each
                bar.update()


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)
