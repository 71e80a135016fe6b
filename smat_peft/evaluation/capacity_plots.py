"""Pictures of where experts are open: by layer type and by depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from smat_peft.evaluation.analysis import Array, Capacity
from smat_peft.evaluation.plots import BLUE, SKY, VERMILION, picture

OPEN = "open gates, % of weights"


def draw_capacity_by_layer_type(parts: Sequence[Capacity], path: Path) -> None:
    """Share of open gates by layer type, from [`capacities`]: experts, their mean, one standard deviation."""
    total = sum(part.size for part in parts)
    with picture(path, height=1.0 + 0.24 * len(parts)) as figure:
        axes = figure.subplots()
        _draw(axes, parts, upright=False)
        axes.set_yticks(range(len(parts)), [f"{part.part} ({100 * part.size / total:.2g} %)" for part in parts])
        axes.set(xlabel=OPEN, ylabel="layer type (share of all weights)", xlim=(0, None))
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)


def draw_capacity_by_depth(parts: Sequence[Capacity], path: Path) -> None:
    """Share of open gates by block, from [`capacities`]: experts, their mean, one standard deviation."""
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
        spread = {"yerr" if upright else "xerr": shares.std(1, ddof=1)}
        mean = shares.mean(1)
        label = "mean ± standard deviation over experts"
        axes.errorbar(*along(places, mean), fmt="D", color=BLUE, markersize=4, capsize=2, label=label, **spread)
    sizes = np.array([part.size for part in parts])
    overall = float(sizes @ shares.mean(1) / sizes.sum())
    line = axes.axhline if upright else axes.axvline
    line(overall, color=VERMILION, linestyle="--", linewidth=1, label=f"all weights: {overall:.1f} %")
