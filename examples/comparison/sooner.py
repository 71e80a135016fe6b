"""Whether SMAT is sooner where dense meta-tuning ends, by the curves of training runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from comparison.rows import DENSE, SMAT
from smat_peft.evaluation.bootstrap import PairedDifferences, Verdict, verdict


class Sooner(NamedTuple):
    """By how many training tasks SMAT is sooner with each seed, None where it never gets there; and the verdict."""

    gains: list[int | None]
    verdict: Verdict


def reached_sooner(runs: Iterable[tuple[str, int, dict[str, Any]]]) -> Sooner | None:
    """By how many training tasks SMAT is sooner at the accuracy that dense meta-tuning ends with, seed by seed.

    On validation classes of the training domains. Where SMAT reaches the level with some seeds only, no mean says it,
    and one seed decides nothing.
    """
    curves = {(row, seed): figures["curve"] for row, seed, figures in runs}
    seeds = [seed for name, seed in curves if name == DENSE and (SMAT, seed) in curves]
    if not seeds:
        return None
    gains = []
    for seed in seeds:
        level = curves[DENSE, seed][-1][1]
        ours, theirs = (_tasks_until(curves[name, seed], level) for name in (SMAT, DENSE))
        gains.append(None if ours is None or theirs is None else theirs - ours)
    if None not in gains:
        paired = PairedDifferences(tuple(seeds), {"tasks": "id"}, {"tasks": np.array(gains, float)[:, None]})
        return Sooner(gains, verdict(paired.interval("tasks")))
    open_yet = len(gains) == 1 or any(gain is not None and gain > 0 for gain in gains)
    return Sooner(gains, "undecided" if open_yet else "does not hold")


def _tasks_until(curve: Sequence[tuple[int, float]], level: float) -> int | None:
    return next((tasks for tasks, accuracy in curve if accuracy >= level), None)
