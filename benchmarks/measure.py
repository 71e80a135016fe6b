"""How every figure is taken: both sides in turn in one process, medians over rounds, and one line of JSON at the end.

Time: after a warm-up, each round calls each side once, and the side that goes first changes from round to round. A
figure is the median over the rounds; a ratio is the median of the rounds' own ratios, and its spread the distance
between the quartiles of those ratios over their median. Memory: each side in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import smat_peft
from smat_peft.commands.console import HelpFormatter
from smat_peft.evaluation.tables import render_table

# What is timed: called once a round. A generator function yields the name of each phase as the phase ends.
Side = Callable[[], Any]
Rounds = list[float]
RatioIs = Literal["baseline / ours", "ours / baseline"]
CLEAR_PEAK = "5"  # proc(5): written to clear_refs, it resets the peak of the resident set


# ----- arguments -----


def make_parser(description: str | None, *, rounds: int = 7, warmup: int = 2) -> argparse.ArgumentParser:
    """A parser with the arguments that all benchmarks share; without `--warmup` where `warmup` is 0."""
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="Rounds; each measures every side once.")
    if warmup:
        parser.add_argument("--warmup", type=int, default=warmup, help="Rounds before them that do not count.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--threads", type=int, default=cores, help="Threads of torch on a CPU.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="cpu or cuda.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of weights and images.")
    return parser


def start(arguments: argparse.Namespace) -> torch.device:
    """Set threads and seed as the arguments say, and return the device."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    return torch.device(arguments.device)


# ----- time -----


def seconds_of(side: Side, device: torch.device) -> dict[str, float]:
    """Call a side once; seconds by phase, where it has none under the name ""."""
    gc.collect()
    seconds: dict[str, float] = {}
    _synchronise(device)
    last = time.perf_counter()
    result = side()
    for phase in result if isinstance(result, Iterator) else ("",):
        _synchronise(device)
        now = time.perf_counter()
        seconds[phase] = seconds.get(phase, 0.0) + now - last
        last = now
    return seconds


def interleave(
    sides: Mapping[str, Side], device: torch.device, *, rounds: int, warmup: int
) -> dict[str, dict[str, Rounds]]:
    """Seconds of each phase of each side in each round: `{side: {phase: [rounds]}}`."""
    gc.collect()
    gc.freeze()  # what there is now is not looked through again before each call
    names = list(sides)
    measured: dict[str, dict[str, Rounds]] = {name: {} for name in names}
    for number in tqdm(range(-warmup, rounds), desc="Measuring", unit="round", leave=False):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            for phase, seconds in seconds_of(sides[name], device).items():
                if number >= 0:
                    measured[name].setdefault(phase, []).append(seconds)
    gc.unfreeze()
    return measured


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ----- memory -----


class Peak(NamedTuple):
    """Peak memory in bytes: above what was held before, and in all."""

    above: int
    total: int


def peak_memory(call: Callable[[], object], device: torch.device) -> Peak:
    """Peak memory during a call: the allocator's on CUDA, the resident set of this process on a CPU (Linux only)."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        total = torch.cuda.max_memory_allocated(device)
    else:
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text(CLEAR_PEAK)
        call()
        total = _resident("VmHWM")
    return Peak(total - before, total)


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function of a module, run in a process that is started for it."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def _resident(entry: Literal["VmRSS", "VmHWM"]) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{entry}:"))
    return 1024 * int(kilobytes)


# ----- results -----


@dataclass(frozen=True)
class Row:
    """One figure of each side, and how they compare."""

    name: str
    unit: str
    ours: float
    baseline: float
    ratio: float
    ratio_is: RatioIs
    spread: float


def compare(
    name: str,
    ours: Sequence[float],
    baseline: Sequence[float],
    *,
    unit: str = "s",
    ratio_is: RatioIs = "baseline / ours",
) -> Row:
    """The row of two sides that were measured in the same rounds.

    `ratio_is` says which way round the ratio is: how many times better than the other implementation
    (`baseline / ours` of a time), or how much of a limit (`ours / baseline`).
    """
    pairs = np.array(ours) / np.array(baseline)
    ratios = pairs if ratio_is == "ours / baseline" else 1 / pairs
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    spread = float((high - low) / abs(middle))
    return Row(name, unit, float(np.median(ours)), float(np.median(baseline)), float(middle), ratio_is, spread)


def sums(phases: Mapping[str, Rounds]) -> Rounds:
    """Seconds of all phases together, by round."""
    return [sum(of_round) for of_round in zip(*phases.values(), strict=True)]


def report(rows: Sequence[Row], arguments: argparse.Namespace, **facts: Any) -> None:
    """Print the rows as a table and, as the last line, as JSON: one object, or a list where there are several.

    Args:
        rows: The figures.
        arguments: What the benchmark was called with.
        facts: What else there is to say about it, such as sizes; part of the settings.
    """
    device = device_name(torch.device(arguments.device))
    settings = {name: value for name, value in vars(arguments).items() if name != "device"} | facts
    cells = [
        (r.name, f"{r.ours:.4g}", f"{r.baseline:.4g}", r.unit, f"{r.ratio:.3g}", r.ratio_is, f"{100 * r.spread:.0f} %")
        for r in rows
    ]
    header = ("", "ours", "baseline", "unit", "ratio", "which is", "spread")
    print(f"\n{device}; " + ", ".join(f"{name} {value}" for name, value in settings.items()) + "\n")
    print(render_table(header, cells, "<>><><>", "text"))
    print()
    common = {"settings": settings, "versions": versions(), "device": device}
    objects = [asdict(row) | common for row in rows]
    print(json.dumps(objects[0] if len(objects) == 1 else objects, default=str))


def device_name(device: torch.device) -> str:
    """What ran it, as figures are labelled."""
    if device.type == "cuda":
        return f"GPU ({torch.cuda.get_device_name(device)})"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"CPU ({models[0] if models else platform.processor()}, {torch.get_num_threads()} threads)"


def versions() -> dict[str, str]:
    """Versions of what is measured and of what it stands on."""
    libraries = {name: version(name) for name in ("torch", "transformers", "peft", "accelerate", "numpy")}
    return {"smat_peft": smat_peft.__version__, "python": platform.python_version()} | libraries
