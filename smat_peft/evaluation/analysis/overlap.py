"""How much the regions that experts open have in common, beside what chance would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smat_peft.evaluation.analysis.gates import OpenGates
from smat_peft.evaluation.analysis.pictures import Array, heat_map, pairs, picture
from smat_peft.evaluation.palette import BLUE, ORANGE, VERMILION


@dataclass(frozen=True)
class Overlap:
    """Intersection over union of two experts' open scalars, `[M, M]` each; 1 on the diagonals.

    Attributes:
        measured: Of the experts. Two that open nothing are the same, too.
        random: Expected of random masks as dense as they are.
        random_by_parameter: The same for masks as dense as they are in each parameter: what is above `random` comes
            from experts being dense in the same parameters, and what is measured above it from the same scalars there.
    """

    measured: Array
    random: Array
    random_by_parameter: Array


def measure_overlap(gates: Sequence[OpenGates]) -> Overlap:
    """Overlap of all pairs of experts, and what it would be by chance."""
    sizes = np.array([[each.size] for each in gates], dtype=np.float64)  # [parameters, 1]
    counts = np.stack([each.together.diagonal() for each in gates])  # [parameters, M]
    return Overlap(
        measured=_intersection_over_union(np.sum([each.together for each in gates], axis=0), counts.sum(0)),
        random=_expected(counts.sum(0, keepdims=True), sizes.sum(0, keepdims=True)),
        random_by_parameter=_expected(counts, sizes),
    )


def draw_overlap(overlap: Overlap, path: Path) -> None:
    """The matrix of overlaps, and all pairs of experts beside what chance would give."""
    size = len(overlap.measured)
    off_diagonal = np.where(np.eye(size, dtype=bool), np.nan, 100 * overlap.measured)
    experts = [str(number + 1) for number in range(size)]
    with picture(path, height=3.3) as figure:
        matrix, strips = figure.subplots(1, 2, width_ratios=(1.1, 1))
        chance = 100 * pairs(np.minimum(overlap.measured, overlap.random)).min()  # where the colours begin
        image = heat_map(matrix, off_diagonal, experts, experts, vmin=chance)
        matrix.set(xlabel="expert", ylabel="expert", title="Overlap of open gates", facecolor="0.85")
        figure.colorbar(image, ax=matrix, label="intersection over union, %")
        columns = {
            "experts": (overlap.measured, BLUE, "o"),
            "random,\nequal\ndensity": (overlap.random, VERMILION, "s"),
            "random,\nequal in each\nparameter": (overlap.random_by_parameter, ORANGE, "^"),
        }
        for place, (values, colour, marker) in enumerate(columns.values()):
            shares = 100 * pairs(values)
            beside = place + np.linspace(-0.2, 0.2, len(shares) + 2)[1:-1]
            strips.plot(beside, shares, marker, color=colour, markersize=3, alpha=0.7)
            strips.hlines(shares.mean(), place - 0.3, place + 0.3, color="k", linewidth=1.2)
            strips.annotate(f"{shares.mean():.1f}", (place + 0.32, shares.mean()), va="center", size=7)
        strips.set_xticks(range(len(columns)), list(columns))
        strips.set(
            ylabel="intersection over union, %",
            title="Pairs of experts, and their mean",
            ylim=(0, None),
            xlim=(-0.5, 2.7),
        )
        strips.grid(axis="y", alpha=0.3)


def _expected(counts: Array, sizes: Array) -> Array:
    """For independent masks with `counts` `[parts, M]` of `sizes` `[parts, 1]` scalars open."""
    together = counts.T @ (counts / sizes)
    np.fill_diagonal(together, counts.sum(0))
    return _intersection_over_union(together, counts.sum(0))


def _intersection_over_union(together: Array, counts: Array) -> Array:
    union = counts[:, None] + counts[None, :] - together
    return np.divide(together, union, out=np.ones_like(together), where=union > 0)
