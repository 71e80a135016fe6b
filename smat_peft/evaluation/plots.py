"""Pictures of a training run."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from smat_peft.errors import DataError
from smat_peft.evaluation.palette import BLUE, VERMILION

SMOOTHED_SHARE = 0.05  # the running mean goes over this share of the points: enough to see a trend between episodes


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
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, panel, log)
    figure.savefig(path, dpi=150)


def _draw(axes: Axes, panel: _Panel, log: Sequence[Mapping[str, Any]]) -> None:
    training, validation = _series(log, panel.training), _series(log, panel.validation)
    if training:
        steps, values = np.array(training).T
        window = max(1, round(SMOOTHED_SHARE * len(values))) if panel.smoothed else 1
        if window > 1:
            axes.plot(steps, panel.scale * values, color=BLUE, alpha=0.25, linewidth=0.8)
        label = "training" if window == 1 else f"training, mean of {window} points"
        marker = "o" if len(values) == 1 else None  # a line through one point would not be seen
        smooth = panel.scale * _running_mean(values, window)
        axes.plot(steps, smooth, color=BLUE, marker=marker, markersize=4, label=label)
    if validation:
        steps, values = np.array(validation).T
        axes.plot(steps, panel.scale * values, color=VERMILION, marker="o", markersize=4, label="validation")
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
