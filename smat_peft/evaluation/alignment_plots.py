"""A picture of how the gradients of domains agree, in the delta and in each expert."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np

from smat_peft.evaluation.alignment_measuring import Alignment
from smat_peft.evaluation.analysis import pairs
from smat_peft.evaluation.plots import BLUE, ORANGE, heat_map, picture

MOST_LEVEL = 9  # more labels are turned upright
STATES = {"before": ("at the backbone's weights", ORANGE, "s"), "trained": ("at the trained weights", BLUE, "o")}


def draw_alignment(alignment: Alignment, path: Path) -> None:
    """Cosines of all pairs of domains for delta and experts, above the matrices of the delta before and after.

    On the diagonals are cosines of a domain's tasks with others of its own.
    """
    parts, domains = len(alignment.trained), len(alignment.domains)
    heights = (2.6, 1.3 + 0.13 * domains)
    with picture(path, height=sum(heights)) as figure:
        above, below = cast(Any, figure.subfigures(2, 1, height_ratios=heights))
        strips = above.subplots()
        for number, (state, (title, colour, marker)) in enumerate(STATES.items()):
            cosines = getattr(alignment, state)
            for part in range(parts):
                values, place = pairs(cosines[part]), part - 0.2 + 0.4 * number
                beside = place + np.linspace(-0.12, 0.12, len(values) + 2)[1:-1]
                label = title if part == 0 else None
                strips.plot(beside, values, marker, color=colour, markersize=2, alpha=0.5, label=label)
                own = cosines[part].diagonal().mean()
                for value, style in ((values.mean(), "-"), (own, ":")):
                    strips.hlines(value, place - 0.17, place + 0.17, color="k", linewidth=1.4, linestyle=style)
        strips.plot([], [], "k-", linewidth=1.4, label="mean over pairs")
        strips.plot([], [], "k:", linewidth=1.4, label="same domain, other tasks")
        strips.axhline(0, color="grey", linewidth=0.6)
        names = ["delta", *(f"expert {part}" for part in range(1, parts))]
        strips.set_xticks(range(parts), names, rotation=90 if parts > MOST_LEVEL else 0)
        strips.set(ylabel="cosine of two domains' gradients")
        strips.grid(axis="y", alpha=0.3)
        above.legend(
            *strips.get_legend_handles_labels(), loc="outside upper center", ncols=4, markerscale=2, columnspacing=1.2
        )

        matrices = {state: getattr(alignment, state)[0] for state in STATES}
        limits = {"vmin": min(map(np.nanmin, matrices.values())), "vmax": max(map(np.nanmax, matrices.values()))}
        axes = below.subplots(1, len(STATES), sharey=True)
        for place, (state, (title, _, _)) in zip(axes, STATES.items(), strict=True):
            image = heat_map(place, matrices[state], alignment.domains, alignment.domains, figures=False, **limits)
            place.set_title(f"delta, {title}")
        below.colorbar(image, ax=axes, label="cosine")
