"""Where experts are open: the share of open gates by layer type and by depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from smat_peft.evaluation.analysis.gates import OpenGates
from smat_peft.evaluation.analysis.layers import LAYER_TYPES, block_labels, layer_type
from smat_peft.evaluation.analysis.pictures import Array, picture
from smat_peft.evaluation.palette import BLUE, SKY, VERMILION

OPEN = "open gates, % of weights"


@dataclass(frozen=True)
class Capacity:
    """How open the experts are in one part of the backbone.

    Attributes:
        part: A layer type or a block.
        size: Number of scalars of the part.
        shares: Share of them that is open, by expert, `[M]`.
    """

    part: str
    size: int
    shares: Array


def capacity_by_layer_type(gates: Sequence[OpenGates]) -> list[Capacity]:
    """Share of open gates by what parameters are for."""
    found = capacities(gates, [layer_type(each.name, each.owner) for each in gates])
    return sorted(found, key=lambda capacity: LAYER_TYPES.index(capacity.part))


def capacity_by_depth(gates: Sequence[OpenGates]) -> list[Capacity]:
    """Share of open gates by block, from the image to the feature."""
    return capacities(gates, block_labels(each.name for each in gates))


def capacities(gates: Sequence[OpenGates], parts: Sequence[str]) -> list[Capacity]:
    """Share of open gates by part of the backbone, in the order in which the parts first occur.

    Weighted by their sizes, an expert's shares average to 1 minus its sparsity.

    Args:
        gates: Of each parameter.
        parts: The part that each of them belongs to.
    """
    found = []
    for part in dict.fromkeys(parts):
        inside = [each for each, its_part in zip(gates, parts, strict=True) if its_part == part]
        size = sum(each.size for each in inside)
        found.append(Capacity(part, size, np.sum([each.together.diagonal() for each in inside], axis=0) / size))
    return found


def draw_capacity_by_layer_type(parts: Sequence[Capacity], path: Path) -> None:
    """Share of open gates by layer type: experts, their mean and their range."""
    total = sum(part.size for part in parts)
    with picture(path, height=1.0 + 0.24 * len(parts)) as figure:
        axes = figure.subplots()
        _draw(axes, parts, upright=False)
        axes.set_yticks(
            range(len(parts)), [f"{part.part} ({_two_digits(100 * part.size / total)} %)" for part in parts]
        )
        axes.set(xlabel=OPEN, ylabel="layer type (share of all weights)", xlim=(0, None))
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)


def draw_capacity_by_depth(parts: Sequence[Capacity], path: Path) -> None:
    """Share of open gates by block: experts, their mean and their range."""
    labels = [part.part for part in parts]
    with picture(path, height=2.8) as figure:
        axes = figure.subplots()
        _draw(axes, parts, upright=True)
        axes.set_xticks(range(len(parts)), labels, rotation=90 if len(parts) > 18 else 0)
        axes.set(
            xlabel="block, from the image to the feature (before and after: weights outside the blocks)",
            ylabel=OPEN,
            ylim=(0, None),
        )
        axes.grid(axis="y", alpha=0.3)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)


def _draw(axes: Axes, parts: Sequence[Capacity], upright: bool) -> None:
    shares = 100 * np.stack([part.shares for part in parts])  # [parts, M]
    experts = shares.shape[1]
    places = np.arange(len(parts), dtype=np.float64)
    beside = np.linspace(-0.25, 0.25, experts) if experts > 1 else np.zeros(1)
    scattered = (places[:, None] + beside).ravel()

    def along(positions: Array, values: Array) -> tuple[Array, Array]:
        return (positions, values) if upright else (values, positions)

    name = f"each of {experts} experts" if experts > 1 else "the expert"
    axes.plot(*along(scattered, shares.ravel()), "o", color=SKY, markersize=2.5, alpha=0.8, label=name)
    if experts > 1:
        mean = shares.mean(1)
        spread: Any = {"yerr" if upright else "xerr": [mean - shares.min(1), shares.max(1) - mean]}
        label = "mean, lowest and highest of the experts"
        axes.errorbar(*along(places, mean), fmt="D", color=BLUE, markersize=4, capsize=2, label=label, **spread)
    sizes = np.array([part.size for part in parts])
    overall = float(sizes @ shares.mean(1) / sizes.sum())
    line = axes.axhline if upright else axes.axvline
    line(overall, color=VERMILION, linestyle="--", linewidth=1, label=f"all weights: {overall:.1f} %")


def _two_digits(value: float) -> str:
    """Such as 100, 34, 2.6 and 0.051."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
