"""A picture of an evaluation: accuracies of each domain with their intervals."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from smat_peft.evaluation.palette import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION
from smat_peft.evaluation.records import ROLE_TITLES, Evaluation

# shapes tell them apart without any colour
STYLES = ((BLACK, "o"), (VERMILION, "s"), (BLUE, "^"), (GREEN, "D"), (PURPLE, "v"), (ORANGE, "P"))
ROW_HEIGHT = 0.38  # of a domain, in inches
PANEL_WIDTH = 5.2


def plot_accuracies(evaluations: Mapping[str, Evaluation], path: str | os.PathLike[str]) -> None:
    """Draw a panel for each evaluation, with a row for each domain, into a PNG (or what the suffix says).

    Args:
        evaluations: By title; all of the same domains.
        path: Where to write.
    """
    domains = next(iter(evaluations.values())).domains
    figure = Figure(figsize=(2 + PANEL_WIDTH * len(evaluations), 1.8 + ROW_HEIGHT * len(domains)), layout="constrained")
    panels = figure.subplots(1, len(evaluations), squeeze=False, sharey=True, sharex=True)[0]
    for axes, (title, evaluation) in zip(panels, evaluations.items(), strict=True):
        _draw(axes, evaluation)
        axes.set_title(title)
    panels[0].set_yticks(range(len(domains)), [f"{domain} ({ROLE_TITLES[role]})" for domain, role in domains.items()])
    panels[0].invert_yaxis()  # once: the panels share it
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3), frameon=False)
    figure.savefig(path, dpi=150)


def _draw(axes: Axes, evaluation: Evaluation) -> None:
    domains, predictors = list(evaluation.domains), evaluation.predictors
    offsets = np.linspace(-0.3, 0.3, len(predictors)) if len(predictors) > 1 else [0.0]
    for number, (name, offset) in enumerate(zip(predictors, offsets, strict=True)):
        colour, marker = STYLES[number % len(STYLES)]
        estimates = [evaluation.accuracy(name, domain) for domain in domains]
        axes.errorbar(
            [100 * estimate.mean for estimate in estimates],
            np.arange(len(domains)) + offset,
            xerr=[100 * np.nan_to_num(estimate.half_width) for estimate in estimates],
            fmt=marker,
            color=colour,
            markersize=4,
            linewidth=1.2,
            label=name,
        )
    roles = list(evaluation.domains.values())
    for place in range(1, len(roles)):
        if roles[place] != roles[place - 1]:
            axes.axhline(place - 0.5, color="0.7", linewidth=0.8)
    axes.set_xlabel("query accuracy in %, with 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
