"""Which experts the router chooses for tasks of each domain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.collections import LineCollection
from scipy.cluster import hierarchy

from smat_peft.evaluation.analysis.pictures import heat_map, picture
from smat_peft.evaluation.records import ROLE_TITLES, Role
from smat_peft.evaluation.routing import Routing

SPACE = 10  # of SciPy's dendrograms between two leaves


def draw_selection(routing: Routing, roles: Mapping[str, Role], path: Path) -> None:
    """Mean expert weights of two or more domains as a heat map; those that choose alike are joined by a tree.

    The tree is of average linkage by the Euclidean distance of mean weights.
    """
    means = np.stack([weights.mean(0) for weights in routing.weights.values()])  # [D, M]
    domains, experts = means.shape
    linkage = hierarchy.linkage(means, "average", optimal_ordering=True)
    tree = hierarchy.dendrogram(linkage, orientation="left", no_plot=True)
    order = np.array(tree["leaves"])
    branches = np.stack([np.array(tree["dcoord"]), np.array(tree["icoord"]) / SPACE - 0.5], axis=-1)
    titles = [f"{name} ({ROLE_TITLES[roles[name]]})" for name in routing.weights]
    names = [str(number + 1) for number in range(experts)]
    with picture(path, height=1.4 + 0.2 * domains) as figure:
        dendrogram, matrix = figure.subplots(1, 2, width_ratios=(1, 4))
        dendrogram.add_collection(LineCollection(list(branches), colors="k", linewidths=0.8))
        dendrogram.set(ylim=(domains - 0.5, -0.5), xlabel="distance", yticks=[])
        dendrogram.set_xlim(max(branches[..., 0].max(), 1e-6) * 1.05, 0)
        dendrogram.locator_params(axis="x", nbins=2)
        dendrogram.spines["left"].set_visible(False)
        image = heat_map(matrix, means[order], [titles[row] for row in order], names)
        matrix.set(xlabel="expert")
        bar = figure.colorbar(image, ax=matrix, label=f"mean expert weight (even: {1 / experts:.2g})")
        bar.ax.axhline(1 / experts, color="w", linewidth=1.5)
