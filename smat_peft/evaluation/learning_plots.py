"""A picture of accuracy over training tasks, run by run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from smat_peft.evaluation.learning_measuring import LearningCurve
from smat_peft.evaluation.plots import COLOURS, MARKERS, picture
from smat_peft.evaluation.records import ROLE_TITLES

LINES = ("-", "--", "-.", ":")


def draw_learning_curves(curves: Sequence[LearningCurve], path: Path) -> None:
    """Accuracy with its 95 % interval over the number of training tasks, a panel for each role."""
    roles = list(curves[0].accuracy)
    with picture(path, height=3.0) as figure:
        panels = figure.subplots(1, len(roles), squeeze=False)[0]
        for role, axes in zip(roles, panels, strict=True):
            for number, curve in enumerate(curves):
                colour = COLOURS[number % len(COLOURS)]
                estimates = curve.accuracy[role]
                mean, low, high = (
                    100 * np.array([getattr(estimate, name) for estimate in estimates])
                    for name in ("mean", "low", "high")
                )
                style, marker = LINES[number % len(LINES)], MARKERS[number % len(MARKERS)]
                axes.fill_between(curve.tasks, low, high, color=colour, alpha=0.12, linewidth=0)
                axes.plot(curve.tasks, mean, style, marker=marker, color=colour, markersize=3.5, label=curve.label)
            axes.axhline(mean[0], color="grey", linewidth=0.8, linestyle=":", label="backbone")
            name = "ID, validation classes" if role == "id" else ROLE_TITLES[role]
            axes.set(title=name, xlabel="training tasks", ylabel="query accuracy, %")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.grid(alpha=0.3)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)))
