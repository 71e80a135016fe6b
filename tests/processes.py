"""Processes of their own, which tests start, fork and kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from smat_peft.meta_tuning import lock

ROOT = Path(__file__).parents[1]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")


def python(*words: object, folder: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python with this repository's package on one thread of the CPU, in a folder and with more variables."""
    here = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command, environment = [sys.executable, *map(str, words)], os.environ | here | variables
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def launch(processes: int, *words: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The same in so many processes of one run."""
    return python(*TORCHRUN, processes, *words, folder=folder)


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
