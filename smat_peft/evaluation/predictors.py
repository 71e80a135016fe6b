"""Predictors: functions from an episode to the logits of its queries, here those that take no gradient step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from smat_peft.episodes.episode import Episode
from smat_peft.errors import ConfigurationError, DataError
from smat_peft.experts.router import even_weights
from smat_peft.few_shot.adaptation import classify_episode
from smat_peft.few_shot.backbone import DEFAULT_BATCH_SIZE
from smat_peft.few_shot.mixing import ExpertMix, merge_experts, route_support
from smat_peft.tuner.tasks import adapter_config, has_experts

BACKBONE = "backbone"
SMAT = "SMAT"
FIXED_MEAN = "fixed mean experts"
EVEN_MIX = "even mix"


class Prediction(NamedTuple):
    """Logits of the queries `[Nq, C]`, and how the experts were mixed for them, `[M]`."""

    logits: Tensor
    expert_weights: Tensor | None = None


Predictor = Callable[[Episode], Tensor | Prediction]
"""Logits `[Nq, C]` of an episode's queries, from its support and never from its query labels."""


def prototype_predictor(
    model: nn.Module, experts: ExpertMix = "routed", *, batch_size: int = DEFAULT_BATCH_SIZE
) -> Predictor:
    """Classify by prototypes, without fine-tuning (METHOD 11a).

    Args:
        model: A backbone with or without experts.
        experts: `"routed"` for each episode, `"none"` for the untouched backbone, or the same weights `[M]` for all,
            merged once.
        batch_size: Images that go through the backbone at a time.
    """
    if isinstance(experts, Tensor):
        experts = merge_experts(model, experts)

    @torch.inference_mode()
    def predict(episode: Episode) -> Prediction:
        support, labels = episode.support, episode.support_labels
        return Prediction(
            *classify_episode(model, support, labels, episode.query, experts=experts, batch_size=batch_size)
        )

    return predict


def default_predictors(
    model: nn.Module, *, mean_experts: Tensor | None = None, batch_size: int = DEFAULT_BATCH_SIZE
) -> dict[str, Predictor]:
    """The backbone and, where the model has experts, SMAT and two mixes that ignore the support.

    Args:
        model: A backbone with or without experts.
        mean_experts: One expert vector `[M]` for all episodes, from [`mean_expert_weights`]; left out if not given.
        batch_size: Images that go through the backbone at a time.
    """
    mixes: dict[str, ExpertMix] = {BACKBONE: "none"}
    if has_experts(model):
        mixes[SMAT] = "routed"
        if mean_experts is not None:
            mixes[FIXED_MEAN] = mean_experts
        mixes[EVEN_MIX] = even_weights(adapter_config(model).num_experts).weights
    return {name: prototype_predictor(model, mix, batch_size=batch_size) for name, mix in mixes.items()}


def mean_expert_weights(
    model: nn.Module, episodes: Iterable[Episode], *, batch_size: int = DEFAULT_BATCH_SIZE
) -> Tensor:
    """The mean `[M]` of the routed weights over episodes: validation ones, since the test's are not to be looked at."""
    if not has_experts(model):
        raise ConfigurationError("the model has no experts whose weights could be averaged")
    routed = [
        route_support(model, episode.support, episode.support_labels, batch_size=batch_size).weights
        for episode in episodes
    ]
    if not routed:
        raise DataError("there are no episodes to average expert weights over")
    return torch.stack(routed).mean(0)
