"""What all pictures share, and the curves of a training run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from smat_peft.errors import DataError

SMOOTHED_SHARE = 0.05  # the running mean goes over this share of the points: enough to see a trend between episodes

# colours that stay apart for the colour-blind (Okabe and Ito 2008)
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = "osD^vPX*"
TRAINING_COLOUR, VALIDATION_COLOUR = BLUE, VERMILION

PRINT: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": 200,
}
FULL_WIDTH = 7.0  # inches, of a page's text
LEAST_HEIGHT = 2.4  # inches: room for the label of a vertical axis
MOST_LETTERS = 40  # of labels side by side; more are turned upright


@contextmanager
def picture(path: Path, height: float, width: float = FULL_WIDTH) -> Iterator[Figure]:
    """A figure to draw into, saved as `path.pdf` and `path.png` at the end of the block; sizes are in inches."""
    with rc_context(PRINT):
        figure = Figure(figsize=(width, max(height, LEAST_HEIGHT)), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(f"{path}.pdf", metadata={"CreationDate": None})  # the same numbers give the same file
        figure.savefig(f"{path}.png")


def write_numbers(path: Path, numbers: Any) -> None:
    """Write what a picture shows as `path.json`: dataclasses, arrays, mappings and sequences; NaN becomes null."""
    Path(f"{path}.json").write_text(json.dumps(_plain(numbers), indent=1), encoding="utf-8")


def heat_map(
    axes: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    figures: bool = True,
    **settings: Any,
) -> Any:
    """A matrix as colours, with `figures` in the cells where there is room; `settings` are those of `imshow`.

    Returns:
        What a colour bar is made for.
    """
    image = axes.imshow(values, aspect="auto", interpolation="nearest", **{"cmap": "cividis"} | settings)
    axes.set_xticks(range(len(columns)), columns, rotation=90 if sum(map(len, columns)) > MOST_LETTERS else 0)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if figures and len(columns) <= 16:
        lowest, highest = image.get_clim()
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = value < (lowest + highest) / 2
                text = f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3g}"
                size = 6 if len(columns) <= 8 else 5
                axes.text(column, row, text, ha="center", va="center", size=size, color="w" if dark else "k")
    return image


def _plain(numbers: Any) -> Any:
    if dataclasses.is_dataclass(numbers) and not isinstance(numbers, type):
        return {field.name: _plain(getattr(numbers, field.name)) for field in dataclasses.fields(numbers)}
    if isinstance(numbers, Mapping):
        return {str(name): _plain(value) for name, value in numbers.items()}
    if isinstance(numbers, np.ndarray):
        return _plain(numbers.tolist())
    if isinstance(numbers, list | tuple):
        return [_plain(value) for value in numbers]
    if isinstance(numbers, float):
        return float(f"{numbers:.6g}") if math.isfinite(numbers) else None
    return numbers


@dataclass(frozen=True)
class _Panel:
    title: str
    unit: str
    training: str
    validation: str | None = None
    scale: float = 1.0
    smoothed: bool = True


PANELS = (
    _Panel("Loss", "mean over episodes", "loss"),
    _Panel("Query accuracy", "%", "accuracy", "validation_accuracy", scale=100),
    _Panel("Sparsity of the experts", "% of gates at 0", "sparsity", scale=100, smoothed=False),
)


def plot_curves(log: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw loss, accuracy and sparsity over training steps, one panel each, into a PNG (or what the suffix says).

    Args:
        log: Records in the order of training, each with `step` and any of `loss`, `accuracy`, `sparsity`,
            `validation_accuracy` (accuracies and sparsity as shares from 0 to 1); other entries are not looked at, nor
            are values that are not finite.
        path: Where to write.

    Raises:
        DataError: No record has anything to draw.
    """
    panels = [panel for panel in PANELS if _series(log, panel.training) or _series(log, panel.validation)]
    if not panels:
        raise DataError("the training log has no loss, accuracy or sparsity to draw")
    figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, panel, log)
    figure.savefig(path, dpi=150)


def _draw(axes: Axes, panel: _Panel, log: Sequence[Mapping[str, Any]]) -> None:
    training, validation = _series(log, panel.training), _series(log, panel.validation)
    if training:
        steps, values = np.array(training).T
        window = max(1, round(SMOOTHED_SHARE * len(values))) if panel.smoothed else 1
        if window > 1:
            axes.plot(steps, panel.scale * values, color=TRAINING_COLOUR, alpha=0.25, linewidth=0.8)
        label = "training" if window == 1 else f"training, mean of {window} points"
        marker = "o" if len(values) == 1 else None  # a line through one point would not be seen
        smooth = panel.scale * _running_mean(values, window)
        axes.plot(steps, smooth, color=TRAINING_COLOUR, marker=marker, markersize=4, label=label)
    if validation:
        steps, values = np.array(validation).T
        axes.plot(steps, panel.scale * values, color=VALIDATION_COLOUR, marker="o", markersize=4, label="validation")
    axes.set(title=panel.title, xlabel="step", ylabel=panel.unit)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")


def _series(log: Sequence[Mapping[str, Any]], name: str | None) -> list[tuple[float, float]]:
    """Steps and values, without those that are not there or not finite (the loss of a skipped update)."""
    points = ((record["step"], record.get(name)) for record in log if name is not None)
    return [(step, value) for step, value in points if value is not None and math.isfinite(value)]


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values, of fewer at the start."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)
