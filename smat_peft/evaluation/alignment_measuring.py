"""Whether the tasks of different domains pull the delta the same way, and each expert's part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from smat_peft.episodes.episode import Episode
from smat_peft.evaluation.analysis import Array, between_halves, gradient_cosines
from smat_peft.evaluation.selection_measuring import DomainEpisodes, routed_weights
from smat_peft.experts.gates import gate_values
from smat_peft.experts.prototypes import class_means, cosine_logits
from smat_peft.few_shot.backbone import device_of
from smat_peft.meta_tuning.objective import query_loss
from smat_peft.tuner import tasks
from smat_peft.tuner.layer import SMATLayer
from smat_peft.tuner.tasks import active_adapter, adapter_gates

HALVES = 2


@dataclass(frozen=True)
class Alignment:
    """Cosines between domains' mean gradients, of the delta (0) and of experts 1..M's parts of it, `[1 + M, D, D]`.

    Attributes:
        domains: Their names.
        before: At the backbone's own weights.
        trained: At the task weights of each domain.
        episodes: Of each mean: half of a domain's.
    """

    domains: list[str]
    before: Array
    trained: Array
    episodes: int


def measure_alignment(model: nn.Module, domains: Sequence[DomainEpisodes]) -> Alignment:
    """Gradients of the query's cross-entropy (METHOD 5, 7), the experts mixed as they are for each domain on average.

    Every mean is taken over half of a domain's episodes, so that the diagonal says how much two halves of one domain
    agree (see [`between_halves`]). All gradients of one state are kept in memory: 2 D times the backbone.
    """
    weights = torch.stack([each.mean(0) for each in routed_weights(model, domains).values()])
    with tasks.evaluation_mode(model):
        before, trained = (_cosines(model, domains, weights, state) for state in ("before", "trained"))
    names = [domain.name for domain in domains]
    return Alignment(names, before, trained, min(len(domain.episodes) for domain in domains) // HALVES)


def task_gradients(model: nn.Module, weights: dict[str, Tensor], episodes: Sequence[Episode]) -> list[Tensor]:
    """Mean gradient of the query's cross-entropy over episodes, for each of a task's weights."""
    device = device_of(model)
    leaves = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
    total = [torch.zeros_like(leaf) for leaf in leaves.values()]
    for episode in (each.to(device) for each in episodes):
        with tasks.task(model, leaves):
            found = tasks.features(model, torch.cat([episode.support, episode.query]))
        prototypes = class_means(found[: len(episode.support)], episode.support_labels)
        loss = query_loss(cosine_logits(found[len(episode.support) :], prototypes), episode.query_labels)
        gradients = torch.autograd.grad(loss, [*leaves.values()], allow_unused=True, materialize_grads=True)
        torch._foreach_add_(total, gradients, alpha=1 / len(episodes))
    return total


def _cosines(model: nn.Module, domains: Sequence[DomainEpisodes], weights: Tensor, state: str) -> Array:
    adapter, columns = active_adapter(model), []
    for mix, domain in zip(weights, tqdm(domains, desc=f"gradients {state}", unit="domain", disable=None), strict=True):
        with torch.no_grad():
            merged = tasks.interpolate(model, mix.to(device_of(model)), training=False)
        if state == "before":
            merged = {layer.full_name(n): getattr(layer.get_base_layer(), n) for layer, n, _ in _gates(model)}
        for half in range(HALVES):
            episodes = [domain.episodes[index] for index in range(half, len(domain.episodes), HALVES)]
            gradients = dict(zip(merged, task_gradients(model, merged, episodes), strict=True))
            columns.append({name: gradient.cpu() for name, gradient in gradients.items()})
    names = [layer.full_name(name) for layer, name, _ in _gates(model)]
    values = (
        gate_values(gates.detach(), layer.gate_temperature(adapter, training=False)).cpu()
        for layer, _, gates in _gates(model)
    )
    stacked = (torch.stack([column[name] for column in columns]) for name in names)
    return between_halves(gradient_cosines(stacked, values, weights.repeat_interleave(HALVES, 0)))


def _gates(model: nn.Module) -> list[tuple[SMATLayer, str, Tensor]]:
    return list(adapter_gates(model, active_adapter(model)))
