"""Whether the tasks of different domains pull the delta the same way, and each expert's part of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from smat_peft.episodes.episode import Episode
from smat_peft.episodes.sampling import EpisodeSampler
from smat_peft.evaluation.analysis.pictures import Array, heat_map, pairs, picture
from smat_peft.evaluation.palette import BLUE, ORANGE
from smat_peft.evaluation.predictors import mean_expert_weights
from smat_peft.experts.gates import gate_values
from smat_peft.experts.prototypes import query_logits
from smat_peft.few_shot.backbone import device_of
from smat_peft.meta_tuning.objective import query_loss
from smat_peft.tuner import adapters, tasks

HALVES = 2
MOST_LEVEL = 9  # more labels are turned upright
STATES = {"before": ("at the backbone's weights", ORANGE, "s"), "trained": ("at the trained weights", BLUE, "o")}


@dataclass(frozen=True)
class Alignment:
    """Cosines between domains' mean gradients, of the delta (0) and of experts 1..M's parts of it, `[1 + M, D, D]`.

    Attributes:
        domains: Their names.
        before: At the backbone's own weights.
        trained: At the task weights of each domain.
    """

    domains: list[str]
    before: Array
    trained: Array


def measure_alignment(model: nn.Module, domains: Mapping[str, EpisodeSampler], episodes: int) -> Alignment:
    """Gradients of the query's cross-entropy (METHOD 5, 7), the experts mixed as they are for each domain on average.

    Every mean is taken over half of a domain's episodes, so that the diagonal says how much two halves of one domain
    agree (see [`between_halves`]). All gradients of one state are kept in memory: 2 D times the backbone.

    Args:
        model: A model with SMAT layers.
        domains: What each domain's episodes are drawn from.
        episodes: How many of each domain.
    """
    found = {}
    with tasks.evaluation_mode(model):
        mixes = [mean_expert_weights(model, map(each.__getitem__, range(episodes))) for each in domains.values()]
        for state in STATES:
            gradients = []
            bar = tqdm(domains.values(), desc=f"gradients {state}", unit="domain", disable=None)
            for mix, sampler in zip(mixes, bar, strict=True):
                with torch.no_grad():
                    merged = _own_weights(model) if state == "before" else tasks.interpolate(model, mix, training=False)
                for half in range(HALVES):
                    own = map(sampler.__getitem__, range(half, episodes, HALVES))
                    gradients.append(task_gradients(model, merged, own))
            weights = torch.stack(mixes).repeat_interleave(HALVES, 0).cpu()
            found[state] = between_halves(_cosines(model, gradients, weights))
    return Alignment(list(domains), **found)


def task_gradients(model: nn.Module, weights: Mapping[str, Tensor], episodes: Iterable[Episode]) -> dict[str, Tensor]:
    """Gradient of the query's cross-entropy, summed over episodes, by each of a task's weights; on the CPU."""
    device = device_of(model)
    leaves = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
    total = [torch.zeros_like(leaf) for leaf in leaves.values()]
    for episode in (each.to(device) for each in episodes):
        with tasks.task(model, leaves):
            found = tasks.features(model, torch.cat([episode.support, episode.query]))
        loss = query_loss(query_logits(found, episode.support_labels), episode.query_labels)
        gradients = torch.autograd.grad(loss, [*leaves.values()], allow_unused=True, materialize_grads=True)
        torch._foreach_add_(total, gradients)
    return {name: each.cpu() for name, each in zip(leaves, total, strict=True)}


def gradient_cosines(gradients: Iterable[Tensor], gates: Iterable[Tensor], weights: Tensor) -> Array:
    """Cosines between groups of tasks of the delta's gradient, and of each expert's part of it, `[1 + M, G, G]`.

    The delta is multiplied by the mixed gates (METHOD 4), so that its gradient is `sum_m w_m z_m` times that of the
    task's weights; expert m's part is `w_m z_m` times it. Where a gradient is 0, cosines are NaN.

    Args:
        gradients: Of the weights of each group's tasks, one parameter after another, `[G, *shape]`.
        gates: Values of the experts' gates over the same parameters, each broadcasting to `[M, *shape]`.
        weights: Expert weights of each group, `[G, M]`.
    """
    groups, experts = weights.shape
    products = torch.zeros(1 + experts, groups, groups, dtype=torch.float64)
    for gradient, values in zip(gradients, gates, strict=True):
        flat = gradient.reshape(groups, -1)
        opened = values.expand(experts, *gradient.shape[1:]).reshape(experts, -1)
        for number, part in enumerate((weights @ opened, *opened)):
            weighted = (flat * part).double()
            products[number] += weighted @ weighted.T
    norms = products.diagonal(dim1=1, dim2=2).sqrt()
    return (products / (norms[:, :, None] * norms[:, None, :])).numpy()


def between_halves(cosines: Array) -> Array:
    """Cosines between domains from those between their halves, `[..., 2 D, 2 D]` -> `[..., D, D]`.

    Each domain has two groups, one after the other, of other episodes. Off the diagonal is the mean over both halves of
    both domains; on it the cosine between a domain's own halves, which is how well so few episodes tell its gradient.
    """
    size = cosines.shape[-1] // HALVES
    halves = cosines.reshape(*cosines.shape[:-2], size, HALVES, size, HALVES)
    between = halves.mean((-3, -1))
    own = np.arange(size)
    between[..., own, own] = halves[..., own, 0, own, 1]
    return between


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
        largest = max(np.nanmax(np.abs(matrix)) for matrix in matrices.values())
        signed = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}  # white is orthogonal
        axes = below.subplots(1, len(STATES), sharey=True)
        for place, (state, (title, _, _)) in zip(axes, STATES.items(), strict=True):
            image = heat_map(place, matrices[state], alignment.domains, alignment.domains, figures=False, **signed)
            place.set_title(f"delta, {title}")
        below.colorbar(image, ax=axes, label="cosine")


def _own_weights(model: nn.Module) -> dict[str, Tensor]:
    """The backbone's own weights that the active adapter changes, by name."""
    own = adapters.adapted_parameters(model, adapters.active_adapter(model))
    return {layer.full_name(name): getattr(layer.get_base_layer(), name) for layer, name in own}


@torch.no_grad()
def _cosines(model: nn.Module, gradients: list[dict[str, Tensor]], weights: Tensor) -> Array:
    adapter = adapters.active_adapter(model)
    layers = list(adapters.adapter_gates(model, adapter))
    stacked = (torch.stack([each[layer.full_name(name)] for each in gradients]) for layer, name, _ in layers)
    values = (gate_values(gates, layer.gate_temperature(adapter, training=False)).cpu() for layer, _, gates in layers)
    return gradient_cosines(stacked, values, weights)
