"""A picture of how much the regions that experts open have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smat_peft.evaluation.analysis import Array, pairs
from smat_peft.evaluation.plots import BLUE, ORANGE, VERMILION, heat_map, picture


@dataclass(frozen=True)
class Overlap:
    """Intersection over union of two experts' open scalars, `[M, M]` each.

    Attributes:
        measured: Of the experts.
        random: Expected of random masks as dense as they are.
        random_by_parameter: The same for masks as dense as they are in each parameter.
    """

    measured: Array
    random: Array
    random_by_parameter: Array


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
