"""Predictors: functions from an episode to the logits of its queries."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn

from smat_peft.episodes.episode import Episode
from smat_peft.errors import ConfigurationError, DataError
from smat_peft.experts.prototypes import query_logits
from smat_peft.few_shot.adaptation import PROTOTYPE, classify_episode
from smat_peft.few_shot.backbone import DEFAULT_BATCH_SIZE
from smat_peft.few_shot.fine_tuning import Adaptation
from smat_peft.few_shot.learning_rate import choose_learning_rate
from smat_peft.few_shot.mixing import ExpertMix, merge_experts, route_support
from smat_peft.tuner.adapters import adapter_router, has_experts
from smat_peft.tuner.tasks import even_mix

BACKBONE = "backbone"
SMAT = "SMAT"
FIXED_MEAN = "fixed mean experts"
EVEN_MIX = "even mix"
OTHER_DOMAIN = "another domain's experts"
FEATURES = "features"


class Prediction(NamedTuple):
    """Logits of the queries `[Nq, C]`, how the experts were mixed for them `[M]`, the rate of fine-tuning."""

    logits: Tensor
    expert_weights: Tensor | None = None
    learning_rate: float | None = None


Predictor = Callable[[Episode], Tensor | Prediction]
"""Logits `[Nq, C]` of an episode's queries, from its support and never from its query labels."""

FeatureFunction = Callable[[Tensor], Tensor]
"""Features `[N, D]` of pixels `[N, 3, H, W]`."""


@dataclass(frozen=True)
class ModelPredictor:
    """Classifies by the prototypes of a model's features, after fine-tuning on the support if that is asked for.

    Attributes:
        model: A backbone with or without experts; it comes back as it was.
        experts: How to mix the experts.
        adaptation: What to do on the support after that (METHOD 11).
        chooses_rate: Whether each episode's learning rate is chosen on images left out of its support.
        batch_size: Images that go through the backbone at a time.
    """

    model: nn.Module
    experts: ExpertMix = "routed"
    adaptation: Adaptation = PROTOTYPE
    chooses_rate: bool = False
    batch_size: int = DEFAULT_BATCH_SIZE

    def __call__(self, episode: Episode) -> Prediction:
        """Logits of the queries, the expert weights, and the learning rate where weights were fine-tuned."""
        adaptation, support, labels = self.adaptation, episode.support, episode.support_labels
        settings: dict[str, Any] = {"experts": self.experts, "batch_size": self.batch_size}
        if self.chooses_rate:
            rate = choose_learning_rate(self.model, support, labels, adaptation, **settings)
            adaptation = replace(adaptation, learning_rate=rate)
        logits, weights = classify_episode(
            self.model, support, labels, episode.query, adaptation=adaptation, **settings
        )
        return Prediction(logits, weights, None if adaptation.kind == "prototype" else adaptation.learning_rate)


def prototype_predictor(
    model: nn.Module, experts: ExpertMix = "routed", *, batch_size: int = DEFAULT_BATCH_SIZE
) -> ModelPredictor:
    """Classify by prototypes, without fine-tuning unless an evaluation says otherwise (METHOD 11).

    Args:
        model: A backbone with or without experts. Where another method's adapter is on it, a copy is taken, with the
            adapter merged.
        experts: `"routed"` for each episode, `"none"` for the untouched backbone, or the same weights `[M]` for all.
            What is the same for all, an adapter's even mix too where it has no router, is merged here, once.
        batch_size: Images that go through the backbone at a time.
    """
    if _has_another_adapter(model):
        adapted: Any = copy.deepcopy(model)
        model = adapted.unload() if isinstance(experts, str) and experts == "none" else adapted.merge_and_unload()
    elif isinstance(experts, Tensor):
        experts = merge_experts(model, experts)
    elif experts == "routed" and has_experts(model) and adapter_router(model) is None:
        experts = merge_experts(model, even_mix(model).weights)
    return ModelPredictor(model, experts, batch_size=batch_size)


def feature_predictor(features: FeatureFunction, *, batch_size: int = DEFAULT_BATCH_SIZE) -> Predictor:
    """Classify by prototypes of any function's features, `[N, 3, H, W]` -> `[N, D]`, so many images at a time."""

    @torch.no_grad()
    def predict(episode: Episode) -> Tensor:
        images = torch.cat([episode.support, episode.query])
        found = torch.cat([features(batch) for batch in images.split(batch_size)])
        if found.ndim != 2 or len(found) != len(images):
            raise ConfigurationError(
                f"a feature function must give [N, D] for {len(images)} images, got {tuple(found.shape)}"
            )
        return query_logits(found, episode.support_labels)

    return predict


def default_predictors(
    model: nn.Module, *, mean_experts: Tensor | None = None, batch_size: int = DEFAULT_BATCH_SIZE
) -> dict[str, Predictor]:
    """The backbone and what is on it: SMAT with two mixes that ignore the support, or another method's adapter.

    Args:
        model: A backbone, with or without an adapter.
        mean_experts: One expert vector `[M]` for all episodes, from [`mean_expert_weights`]; left out if not given.
        batch_size: Images that go through the backbone at a time.
    """
    mixes: dict[str, ExpertMix] = {BACKBONE: "none"}
    if has_experts(model):
        mixes[SMAT] = "routed"
        if mean_experts is not None:
            mixes[FIXED_MEAN] = mean_experts
        mixes[EVEN_MIX] = even_mix(model).weights
    elif isinstance(model, PeftModel):
        mixes[str(model.peft_config[model.active_adapter].peft_type.value)] = "routed"
    return {name: prototype_predictor(model, mix, batch_size=batch_size) for name, mix in mixes.items()}


def other_domain_predictor(
    model: nn.Module, episodes: Iterable[Episode], *, batch_size: int = DEFAULT_BATCH_SIZE
) -> Predictor:
    """SMAT by prototypes with the experts mixed for a support set of another domain: does routing matter?

    Args:
        model: A backbone with experts.
        episodes: Of at least two domains; validation ones, say. An episode takes those of other domains in turn.
        batch_size: Images that go through the backbone at a time.
    """
    routed = list(_routed(model, episodes, batch_size))
    if len({domain for domain, _ in routed}) < 2:
        raise DataError("experts of another domain take episodes of at least two domains")

    def predict(episode: Episode) -> Prediction:
        others = [weights for domain, weights in routed if domain != episode.domain]
        return ModelPredictor(model, others[episode.index % len(others)], batch_size=batch_size)(episode)

    return predict


def as_predictors(model: nn.Module | FeatureFunction | Mapping[str, Predictor | nn.Module]) -> dict[str, Predictor]:
    """What [`evaluate`] takes as predictors by name: see there."""
    if isinstance(model, nn.Module):
        return default_predictors(model)
    if not isinstance(model, Mapping):
        return {FEATURES: feature_predictor(model)}
    return {name: prototype_predictor(each) if isinstance(each, nn.Module) else each for name, each in model.items()}


def predict(name: str, predictor: Predictor, episode: Episode) -> Prediction:
    """What a predictor says of an episode, its logits on the CPU.

    Raises:
        ConfigurationError: The logits are not `[Nq, C]`, or some are no numbers.
    """
    answer = predictor(episode)
    prediction = answer if isinstance(answer, Prediction) else Prediction(answer)
    expected = (len(episode.query), episode.ways)
    if prediction.logits.shape != expected:
        raise ConfigurationError(
            f"predictor {name!r} must give logits of shape {expected}, got {tuple(prediction.logits.shape)}"
        )
    if prediction.logits.isnan().any():
        raise ConfigurationError(f"predictor {name!r} gives logits that are no numbers")
    return prediction._replace(logits=prediction.logits.detach().cpu())


def mean_expert_weights(
    model: nn.Module, episodes: Iterable[Episode], *, batch_size: int = DEFAULT_BATCH_SIZE
) -> Tensor:
    """The mean `[M]` of the routed weights over episodes: validation ones, since the test's are not to be looked at."""
    routed = [weights for _, weights in _routed(model, episodes, batch_size)]
    if not routed:
        raise DataError("there are no episodes to average expert weights over")
    return torch.stack(routed).mean(0)


def _routed(model: nn.Module, episodes: Iterable[Episode], batch_size: int) -> Iterator[tuple[str, Tensor]]:
    """Each episode's domain and expert weights."""
    if not has_experts(model):
        raise ConfigurationError("the model has no experts that could be mixed")
    for episode in episodes:
        routed = route_support(model, episode.support, episode.support_labels, batch_size=batch_size)
        yield episode.domain, routed.weights


def _has_another_adapter(model: nn.Module) -> bool:
    return isinstance(model, PeftModel) and not has_experts(model)
