"""How much faster an update is when its episodes are spread over processes.

    python benchmarks/processes.py --processes 2 4

Each round starts torchrun once with one process and once with each number; every process has `--threads` threads, and a
figure is the mean over `--updates` updates after a first one. More processes than cores can only be slower.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from measure import Rounds, compare, make_parser, report, start
from smat_peft.assets import DEMO_BACKBONE
from workloads import add_model_arguments, make_episodes, make_trainer

WORKER = "--worker"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print, or be one of the processes."""
    parser = make_parser(__doc__, rounds=3, warmup=0)
    add_model_arguments(parser, DEMO_BACKBONE)
    parser.set_defaults(threads=1, device="cpu", torch_compile=False)
    parser.add_argument("--processes", nargs="+", type=int, default=[2], help="Besides one.")
    parser.add_argument("--updates", type=int, default=10, help="Updates of a round.")
    parser.add_argument(WORKER, action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        work(arguments)
        return
    words = list(sys.argv[1:] if argv is None else argv)
    seconds: dict[int, Rounds] = {number: [] for number in (1, *arguments.processes)}
    for _ in tqdm(range(arguments.rounds), desc="Measuring", unit="round", leave=False):
        for number, of_number in seconds.items():
            of_number.append(seconds_of_update(number, words))
    rows = [
        compare(f"an update: {number} processes / one", seconds[number], seconds[1]) for number in arguments.processes
    ]
    report(rows, arguments)


def seconds_of_update(processes: int, words: Sequence[str]) -> float:
    """Seconds of an update in so many processes of their own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    script = Path(__file__).resolve()
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(script), *words, WORKER]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"torchrun failed:\n{ended.stderr}")
    return float(ended.stdout.split()[-1])


def work(arguments: argparse.Namespace) -> None:
    """One of the processes: its share of every update, and in the first of them the time."""
    device = start(arguments)
    trainer = make_trainer(arguments, device)
    accelerator = trainer.accelerator
    share = make_episodes(arguments, device)[accelerator.process_index :: accelerator.num_processes]
    trainer.update(share)
    accelerator.wait_for_everyone()
    started = time.perf_counter()
    for _ in range(arguments.updates):
        trainer.update(share)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        print((time.perf_counter() - started) / arguments.updates, flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
