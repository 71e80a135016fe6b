"""What each row is better by than the backbone, with intervals, and a picture of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from smat_peft.episodes.builtin import KINDS
from smat_peft.evaluation.bootstrap import Interval, pair_records
from smat_peft.evaluation.palette import BLUE, ORANGE, VERMILION
from smat_peft.evaluation.records import ROLE_TITLES, Record, Role

COLOURS: dict[Role, str] = {"id": BLUE, "dev_ood": ORANGE, "test_ood": VERMILION}


class ToBackbone(NamedTuple):
    """A row minus the backbone: on average over the domains of a role, on each, and on test-OOD without textures."""

    roles: dict[Role, Interval]
    domains: dict[str, Interval]
    without_textures: Interval


Differences = Mapping[tuple[str, str], ToBackbone]
"""By row and adaptation."""


def to_backbone(records: Iterable[Record], backbone: Iterable[Record]) -> ToBackbone:
    """All intervals of a row."""
    paired = pair_records(records, backbone)
    roles = {role: paired.interval(paired.domains(role)) for role in ROLE_TITLES}
    others = [domain for domain in paired.domains("test_ood") if domain not in KINDS["textures"]]
    return ToBackbone(roles, {domain: paired.interval(domain) for domain in paired.roles}, paired.interval(others))


def draw(differences: Differences, path: Path) -> None:
    """Differences to the backbone by prototypes with their intervals, and the seeds as small marks."""
    names = [name for name, kind in differences if kind == "prototype"][::-1]
    figure = Figure(figsize=(8, 1.4 + 0.34 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    for shift, (role, colour) in zip((0.22, 0.0, -0.22), COLOURS.items(), strict=True):
        for place, name in enumerate(names):
            interval = differences[name, "prototype"].roles[role]
            y = place + shift
            axes.plot([100 * interval.low, 100 * interval.high], [y, y], color=colour, linewidth=2)
            axes.plot([100 * seed for seed in interval.per_seed], [y] * len(interval.per_seed), "|", color=colour)
            label = ROLE_TITLES[role] if place == 0 else None
            axes.plot(100 * interval.mean, y, "o", color=colour, markersize=5, label=label)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("accuracy minus the backbone's, points; 95 % interval; marks: training seeds")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    figure.savefig(path, dpi=150)
