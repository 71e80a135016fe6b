"""A picture of ID and OOD accuracy over sparsity and number of experts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes

from smat_peft.evaluation.plots import MARKERS, picture
from smat_peft.evaluation.sweep_results import SweepCell, best_rates

ACCURACIES = {"id_accuracy": "ID accuracy, %", "dev_ood_accuracy": "dev-OOD accuracy, %"}
POINT_SIZE = 22  # square points


def draw_sweep(cells: Sequence[SweepCell], path: Path) -> None:
    """ID and dev-OOD accuracy over sparsity, a line for each number of experts, and one against the other.

    Of the learning rates that a cell tried, the best one ([`~smat_peft.evaluation.sweep_results.best_rates`]). Several
    seeds are drawn as points around the line of their mean; of a single one the bars are 95 % intervals.
    """
    cells = best_rates(cells)
    sparsities = sorted({cell.target_sparsity for cell in cells})
    experts = sorted({cell.num_experts for cell in cells})
    with picture(path, height=3.2) as figure:
        *curves, against = figure.subplots(1, 3)
        shades = colormaps["viridis"].resampled(len(sparsities) + 1)  # the last is too light to be seen
        for number, count in enumerate(experts):
            of_count = [cell for cell in cells if cell.num_experts == count]
            marker = MARKERS[number % len(MARKERS)]
            colour = colormaps["cividis"](0.85 * number / max(1, len(experts) - 1))
            label = f"{count} expert" + ("" if count == 1 else "s")
            for axes, name in zip(curves, ACCURACIES, strict=True):
                _draw_curve(axes, of_count, sparsities, name, marker=marker, color=colour, label=label)
            for place, sparsity in enumerate(sparsities):
                inside = [cell for cell in of_count if cell.target_sparsity == sparsity]
                points = [[100 * getattr(cell, name) for cell in inside] for name in ACCURACIES]
                against.scatter(*points, s=POINT_SIZE, marker=marker, color=shades(place))
        for axes, title in zip(curves, ACCURACIES.values(), strict=True):
            axes.set_xticks(range(len(sparsities)), [f"{100 * sparsity:g}" for sparsity in sparsities])
            axes.set(xlabel="target sparsity of each expert, %", ylabel=title)
            axes.grid(alpha=0.3)
        for place, sparsity in enumerate(sparsities):
            label = f"{100 * sparsity:g} % sparse"
            against.plot([], [], "s", markersize=4, color=shades(place), label=label)
        against.set(xlabel=ACCURACIES["id_accuracy"], ylabel=ACCURACIES["dev_ood_accuracy"])
        against.grid(alpha=0.3)
        shown = [axes.get_legend_handles_labels() for axes in (curves[0], against)]
        figure.legend(*shown[0], loc="outside upper center", ncols=8)
        figure.legend(*shown[1], loc="outside lower center", ncols=8, columnspacing=1.0, handletextpad=0.2)


def _draw_curve(axes: Axes, cells: Sequence[SweepCell], sparsities: Sequence[float], name: str, **style: Any) -> None:
    seeds = {cell.seed for cell in cells}
    groups = {
        place: [cell for cell in cells if cell.target_sparsity == sparsity] for place, sparsity in enumerate(sparsities)
    }
    groups = {place: group for place, group in groups.items() if group}
    means = [100 * fmean(getattr(cell, name) for cell in group) for group in groups.values()]
    axes.plot(list(groups), means, markersize=4, linewidth=1.2, **style)
    if len(seeds) == 1:
        half_width = name.replace("accuracy", "half_width")
        bars = [100 * getattr(group[0], half_width) for group in groups.values()]
        axes.errorbar(list(groups), means, bars, fmt="none", ecolor=style["color"], elinewidth=0.6, capsize=1.5)
        return
    for place, group in groups.items():
        values = [100 * getattr(cell, name) for cell in group]
        axes.plot([place] * len(values), values, ".", color=style["color"], markersize=3, alpha=0.6)
