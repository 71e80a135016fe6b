"""Gates, merging and their statistics alone: the work of one update that is not the backbone's.

    python benchmarks/interpolate.py --params 22e6 --experts 8

One update merges task weights for four episodes and carries their gradients back. Sparsity, E[L0] and its gradient are
taken once an update, in the baseline in every episode. The limit is memory: one merge is compared with a copy into a
warm buffer of as many bytes as it must read and write, and with a copy that itself reads and writes as many. How much
of a merge a bare sigmoid over the gates takes is the last figure.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from measure import Row, Side, compare, interleave, make_parser, report, start, sums
from merging import Merging
from smat_peft.experts.compiled import forget_compiled_passes
from workloads import seconds_to_compile

MODES = ("eager", "compiled", "structured")  # element gates; the same compiled; structured gates, never compiled
COPIES = {"copying as many bytes": 1.0, "a copy that reads and writes as many": 0.5}  # and what part of them it copies


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    parser.add_argument("--params", type=float, default=22e6, help="Parameters P; shapes are a ViT-Small's, scaled.")
    parser.add_argument("--experts", type=int, default=8, help="Experts M.")
    parser.add_argument("--episodes", type=int, default=4, help="Episodes of an update.")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="How our side runs.")
    arguments = parser.parse_args(argv)
    device = start(arguments)
    rows: list[Row] = []
    facts: dict[str, float] = {}
    for mode in arguments.modes:
        forget_compiled_passes()
        if mode == "compiled":
            facts["seconds_to_compile"] = seconds_to_compile(arguments, device, arguments.episodes)
            seconds_to_compile(arguments, device, num_tasks=1)  # for the comparison of one merge with a copy
        work = Merging(arguments, device, "structured" if mode == "structured" else "element")
        work.check_same_gradients()
        rows += measure(work, arguments, device, mode)
    report(rows, arguments, parameters=work.size, **facts)


def measure(work: Merging, arguments: argparse.Namespace, device: torch.device, name: str) -> list[Row]:
    """All rows of one kind of gates."""
    sides = {"ours": work.ours, "baseline": work.theirs, "merge": work.one_merge, "sigmoid": work.sigmoid}
    copies = {
        f"{phase} of one merge / {copy}": (phase, copying(int(part * count), device))
        for phase, count in work.bytes_moved().items()
        for copy, part in COPIES.items()
    }
    sides |= {copy: side for copy, (_, side) in copies.items()}
    measured = interleave(sides, device, rounds=arguments.rounds, warmup=arguments.warmup)
    ours, theirs, merge = measured["ours"], measured["baseline"], measured["merge"]
    sigmoid = measured["sigmoid"][""]
    limits = [
        *((copy, merge[phase], measured[copy][""]) for copy, (phase, _) in copies.items()),
        ("bare sigmoid / forward of one merge", sigmoid, merge["forward"]),
    ]
    return [
        *(compare(f"{name}: {phase} of an update", ours[phase], theirs[phase]) for phase in ("forward", "backward")),
        compare(f"{name}: an update", sums(ours), sums(theirs)),
        *(compare(f"{name}: {limit}", a, b, ratio_is="ours / baseline") for limit, a, b in limits),
    ]


def copying(count: int, device: torch.device) -> Side:
    """A side that copies `count` bytes from one warm buffer to another."""
    source, target = (torch.ones(count // 4, device=device) for _ in range(2))
    return lambda: target.copy_(source)


if __name__ == "__main__":
    main()
