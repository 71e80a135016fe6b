"""ID and OOD accuracy over sparsity and number of experts: what a sweep found, as a table on disk and drawn."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes

from smat_peft.errors import DataError
from smat_peft.evaluation.analysis.pictures import MARKERS, picture

ACCURACIES = {"id_accuracy": "ID, validation classes, %", "dev_ood_accuracy": "dev-OOD, %"}
POINT_SIZE = 22  # square points
APART = 0.09  # lines of several numbers of experts, so that their bars do not hide one another


@dataclass(frozen=True)
class SweepCell:
    """One run of a sweep. Accuracies and sparsities are shares from 0 to 1; intervals are 95 %, over episodes.

    Attributes:
        target_sparsity: Wanted of each expert.
        num_experts: M.
        delta_lr: Learning rate of delta.
        seed: Of training.
        validation_score: What rates are chosen by: accuracy of the kept adapter on validation and dev-OOD episodes.
        id_accuracy: Average over ID domains.
        id_half_width: Half its interval.
        dev_ood_accuracy: Average over dev-OOD domains.
        dev_ood_half_width: Half its interval.
        sparsity: Of the gates as they are evaluated, mean over experts.
        merged_sparsity: Share of scalars that no expert changes.
        training_seconds: What the run took.
    """

    target_sparsity: float
    num_experts: int
    delta_lr: float
    seed: int
    validation_score: float
    id_accuracy: float
    id_half_width: float
    dev_ood_accuracy: float
    dev_ood_half_width: float
    sparsity: float
    merged_sparsity: float
    training_seconds: float


def best_rates(cells: Iterable[SweepCell]) -> list[SweepCell]:
    """Of runs that differ by their learning rate alone, the one of the best validation score."""
    best: dict[tuple[float, int, int], SweepCell] = {}
    for cell in sorted(cells, key=lambda cell: cell.validation_score):
        best[cell.target_sparsity, cell.num_experts, cell.seed] = cell
    return list(best.values())


def write_sweep(cells: Iterable[SweepCell], path: Path) -> None:
    """Write cells as CSV, in the order of their settings."""
    ordered = sorted(cells, key=dataclasses.astuple)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in dataclasses.fields(SweepCell)])
        writer.writerows([f"{value:.6g}" for value in dataclasses.astuple(cell)] for cell in ordered)


def read_sweep(path: Path) -> list[SweepCell]:
    """Read what [`write_sweep`] wrote.

    Raises:
        DataError: There is no such file, or it is no such table, or an empty one.
    """
    types: dict[str, type] = {
        field.name: int if field.type == "int" else float for field in dataclasses.fields(SweepCell)
    }
    if not path.is_file():
        raise DataError(f"there is no sweep {path}; make one with examples/sweep.py")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        cells = [SweepCell(**{name: types[name](text) for name, text in row.items()}) for row in rows]
    except (csv.Error, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a table that examples/sweep.py wrote: {error}") from error
    if not cells:
        raise DataError(f"{path} holds no finished run yet")
    return cells


def draw_sweep(cells: Sequence[SweepCell], path: Path) -> None:
    """ID and dev-OOD accuracy over sparsity, a line for each number of experts, and one against the other.

    Of the learning rates that a cell tried, the best one ([`best_rates`]). Several
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
            shift = APART * (number - (len(experts) - 1) / 2)
            for axes, name in zip(curves, ACCURACIES, strict=True):
                _draw_curve(axes, of_count, sparsities, name, shift, marker=marker, color=colour, label=label)
            for place, sparsity in enumerate(sparsities):
                inside = [cell for cell in of_count if cell.target_sparsity == sparsity]
                points = [[100 * getattr(cell, name) for cell in inside] for name in ACCURACIES]
                against.scatter(*points, s=POINT_SIZE, marker=marker, color=shades(place))
        for axes, title in zip(curves, ACCURACIES.values(), strict=True):
            axes.set_xticks(range(len(sparsities)), [f"{100 * sparsity:g}" for sparsity in sparsities])
            axes.set(xlabel="target sparsity, %", ylabel=title)
            axes.grid(alpha=0.3)
        for place, sparsity in enumerate(sparsities):
            label = f"{100 * sparsity:g} % sparse"
            against.plot([], [], "s", markersize=4, color=shades(place), label=label)
        against.set(xlabel=ACCURACIES["id_accuracy"], ylabel=ACCURACIES["dev_ood_accuracy"])
        against.grid(alpha=0.3)
        shown = [axes.get_legend_handles_labels() for axes in (curves[0], against)]
        figure.legend(*shown[0], loc="outside upper center", ncols=8)
        figure.legend(*shown[1], loc="outside lower center", ncols=8, columnspacing=1.0, handletextpad=0.2)


def _draw_curve(
    axes: Axes, cells: Sequence[SweepCell], sparsities: Sequence[float], name: str, shift: float, **style: Any
) -> None:
    seeds = {cell.seed for cell in cells}
    groups = {
        place + shift: [cell for cell in cells if cell.target_sparsity == sparsity]
        for place, sparsity in enumerate(sparsities)
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
