"""How time grows with parameters, experts and images, for interpolation alone and for a whole update.

    python benchmarks/scaling.py

Each line of points gets a fit, seconds = a + b x. The figure of a row is b; the table before it has a and R2, too, and
the picture (benchmarks/pictures/scaling.png) the points.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from measure import Rounds, Side, compare, device_name, interleave, make_parser, report, start, sums
from merging import Merging
from smat_peft.evaluation.palette import BLUE, VERMILION
from smat_peft.evaluation.tables import render_table
from workloads import add_model_arguments, make_baseline, make_episodes, make_trainer, seconds_to_compile, with_changes

PICTURE = Path(__file__).parent / "pictures" / "scaling.png"
STYLES = {"ours": (BLUE, "o"), "baseline": (VERMILION, "s")}  # apart without colour, too
PARAMETERS, EXPERTS, IMAGES = "million parameters", "experts", "images of an episode"


@dataclass(frozen=True)
class Line:
    """Seconds of both sides, `[rounds]` at each x."""

    title: str
    label: str
    x: list[float]
    seconds: dict[str, list[Rounds]]

    def fit(self, side: str) -> tuple[float, float, float]:
        """A and b of the line through the medians, and its R2."""
        medians = np.median(self.seconds[side], axis=1)
        b, a = np.polyfit(self.x, medians, 1)
        residuals = medians - (a + b * np.array(self.x))
        return float(a), float(b), float(1 - residuals.var() / medians.var())

    def slopes(self, side: str) -> Rounds:
        """B of each round."""
        return np.polyfit(self.x, np.array(self.seconds[side]), 1)[0].tolist()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, draw and print."""
    parser = make_parser(__doc__, rounds=5, warmup=1)
    add_model_arguments(parser, "vit-tiny")
    points: dict[str, Any] = {"nargs": "+", "type": float}
    parser.add_argument("--params", type=float, default=5.5e6, help="Parameters that are interpolated, where fixed.")
    parser.add_argument("--over_params", **points, default=[2e6, 4e6, 8e6, 12e6, 16e6], help="And where they vary.")
    points["type"] = int
    parser.add_argument("--over_layers", **points, default=[2, 4, 6, 8, 10, 12], help="Layers of the backbone.")
    parser.add_argument("--over_experts", **points, default=[2, 4, 8, 12, 16], help="Experts.")
    parser.add_argument("--over_shots", **points, default=[1, 5, 10, 15, 20], help="Support images of a class.")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="Where to draw.")
    arguments = parser.parse_args(argv)

    lines = [
        measure("Interpolation", PARAMETERS, arguments, "params", arguments.over_params),
        measure("Interpolation", EXPERTS, arguments, "experts", arguments.over_experts),
        measure("Whole update", PARAMETERS, arguments, "layers", arguments.over_layers),
        measure("Whole update", EXPERTS, arguments, "experts", arguments.over_experts),
        measure("Whole update", IMAGES, arguments, "shots", arguments.over_shots),
    ]
    heading = f"{arguments.model}, {arguments.dtype}, {device_name(torch.device(arguments.device))}"
    draw(lines, heading, arguments.picture)
    fits = [(line, side, line.fit(side)) for line in lines for side in STYLES]
    cells = [(line.title, line.label, side, f"{a:.4g} s", f"{b:.4g} s", f"{r2:.4f}") for line, side, (a, b, r2) in fits]
    print("\n" + render_table(("", "x", "", "a", "b", "R2"), cells, "<<<>>>", "text"))
    rows = [
        compare(f"{line.title} by {line.label}", line.slopes("ours"), line.slopes("baseline"), unit="s")
        for line in lines
    ]
    facts = {f"{line.title} by {line.label}, {side}": {"a": a, "b": b, "r2": r2} for line, side, (a, b, r2) in fits}
    report(rows, arguments, fits=facts)


def measure(title: str, label: str, arguments: argparse.Namespace, name: str, values: Sequence[float]) -> Line:
    """The line of one argument's values."""
    device, x = start(arguments), []
    seconds: dict[str, list[Rounds]] = {side: [] for side in STYLES}
    for value in values:
        chosen = with_changes(arguments, **{name: value})
        if arguments.torch_compile:
            seconds_to_compile(chosen, device, arguments.episodes)
        size, sides = SIDES[title](chosen, device)
        images = chosen.ways * (chosen.shots + chosen.queries)
        x.append({PARAMETERS: size / 1e6, EXPERTS: chosen.experts, IMAGES: images}[label])
        measured = interleave(sides, device, rounds=arguments.rounds, warmup=arguments.warmup)
        for side in STYLES:
            seconds[side].append(sums(measured[side]))
    return Line(title, label, x, seconds)


def interpolation(arguments: argparse.Namespace, device: torch.device) -> tuple[int, Mapping[str, Side]]:
    """Number of parameters and the sides of interpolation alone."""
    work = Merging(arguments, device)
    return work.size, {"ours": work.ours, "baseline": work.theirs}


def whole_update(arguments: argparse.Namespace, device: torch.device) -> tuple[int, Mapping[str, Side]]:
    """Number of parameters and the sides of a whole update."""
    trainer, baseline = make_trainer(arguments, device), make_baseline(arguments, device)
    episodes = make_episodes(arguments, device)
    return baseline.size, {"ours": lambda: trainer.update(episodes), "baseline": lambda: baseline.update(episodes)}


SIDES = {"Interpolation": interpolation, "Whole update": whole_update}


def draw(lines: Sequence[Line], heading: str, path: Path) -> None:
    """Points and fits, a panel a line."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    figure.suptitle(heading)
    panels = figure.subplots(2, 3)
    for line, axes in zip(lines, (*panels[0, :2], *panels[1]), strict=True):
        draw_line(line, axes)
    panels[0, 2].axis("off")
    panels[0, 2].legend(*panels[0, 0].get_legend_handles_labels(), loc="center", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def draw_line(line: Line, axes: Axes) -> None:
    """One panel."""
    ends = np.array([0.0, max(line.x)])
    for side, (colour, marker) in STYLES.items():
        a, b, _ = line.fit(side)
        axes.plot(line.x, np.median(line.seconds[side], axis=1), marker, color=colour, label=f"{side}, median")
        axes.plot(ends, a + b * ends, color=colour, linewidth=1, label=f"{side}, a + b x")
    axes.set(title=line.title, xlabel=line.label, ylabel="seconds of an update", xlim=0, ylim=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
