"""Which experts the router chooses for tasks of each domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from tqdm.auto import tqdm

from smat_peft.episodes.episode import Episode
from smat_peft.episodes.fixed import FixedEpisodes
from smat_peft.evaluation.analysis import Array
from smat_peft.evaluation.records import Role
from smat_peft.few_shot.mixing import route_support


@dataclass(frozen=True)
class DomainEpisodes:
    """A domain's name, what it is for, and episodes of it."""

    name: str
    role: Role
    episodes: Sequence[Episode] | FixedEpisodes


@dataclass(frozen=True)
class Selection:
    """How the experts are mixed for tasks of each domain.

    Attributes:
        domains: Their names.
        roles: What they are for.
        weights: Mean expert weights over a domain's episodes, `[D, M]`.
        spread: Their standard deviation over episodes, `[D, M]`.
    """

    domains: list[str]
    roles: list[Role]
    weights: Array
    spread: Array


def measure_selection(model: nn.Module, domains: Sequence[DomainEpisodes]) -> Selection:
    """Route every episode's support set (METHOD 3)."""
    routed = routed_weights(model, domains)
    return Selection(
        domains=[domain.name for domain in domains],
        roles=[domain.role for domain in domains],
        weights=torch.stack([weights.mean(0) for weights in routed.values()]).double().numpy(),
        spread=torch.stack([weights.std(0) for weights in routed.values()]).double().numpy(),
    )


def routed_weights(model: nn.Module, domains: Sequence[DomainEpisodes]) -> Mapping[str, torch.Tensor]:
    """Expert weights of each domain's episodes, `[E, M]` by the domain's name."""
    total = sum(len(domain.episodes) for domain in domains)
    found = {}
    with tqdm(total=total, desc="routing", unit="episode", disable=None) as bar:
        for domain in domains:
            weights = []
            for episode in domain.episodes:
                weights.append(route_support(model, episode.support, episode.support_labels).weights.cpu())
                bar.update()
            found[domain.name] = torch.stack(weights)
    return found
