"""MetaLearner: the loss of one update's episodes, term by term (METHOD 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from smat_peft.episodes.episode import Episode
from smat_peft.errors import ConfigurationError
from smat_peft.experts.prototypes import class_means, cosine_logits, query_logits
from smat_peft.experts.router import ExpertWeights, Router
from smat_peft.meta_tuning.arguments import MetaTuningArguments
from smat_peft.meta_tuning.chunks import Chunks
from smat_peft.meta_tuning.immediate import immediate
from smat_peft.meta_tuning.objective import (
    distillation_loss,
    multiplier_loss,
    query_loss,
    reset_multipliers_,
    router_z_loss,
    sparsity_loss,
)
from smat_peft.tuner.adapters import (
    active_adapter,
    adapter_config,
    adapter_gates,
    adapter_router,
    expected_l0,
    sparsity,
    thaw_router,
)
from smat_peft.tuner.config import SMATConfig
from smat_peft.tuner.tasks import evaluation_mode, features, interpolate, interpolate_tasks, route, task

TaskWeights = dict[str, Tensor]

SPARSITY_TOLERANCE = 0.05
EVEN_TOLERANCE = 0.02  # of the largest mean expert weight from 1 / M


@dataclass(frozen=True)
class Probe:
    """An episode under the backbone's own weights: class `prototypes` `[C, D]` and the features `[Q, D]` of the `query`
    (empty where no teacher needs them), both without gradient, and what the router said of them.
    """

    prototypes: Tensor
    query: Tensor
    routed: ExpertWeights


@dataclass(frozen=True)
class EpisodeResult:
    """One training forward: the weighted loss `terms`, what the router said, and how well the query was classified."""

    terms: dict[str, Tensor]
    routed: ExpertWeights
    logits: Tensor
    accuracy: Tensor


class MetaLearner(nn.Module):
    """A model with experts and the multipliers of its sparsity constraint.

    One call is this process's share of one update. The router is thawed; the backbone stays in evaluation mode, so that
    no pass is random or changes buffers (dropout, also of attention, stochastic depth, batch norm).

    Args:
        model: A model with SMAT layers and one active adapter.
        arguments: Weights of the terms and rates of the inner steps.
        process_index: Which of the update's episodes are this process's: `process_index`, `+ num_processes`, ...
        num_processes: Number of processes.

    Raises:
        ConfigurationError: The adapter's weights are frozen. Or the backbone is in half precision: small steps from its
            weights would round away.
    """

    logged = ("accuracy", "sparsity")  # of `statistics`

    def __init__(
        self,
        model: nn.Module,
        arguments: MetaTuningArguments,
        *,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        super().__init__()
        self.model = model
        self.arguments = arguments
        self.process_index = process_index
        self.num_processes = num_processes
        self.adapter_name = active_adapter(model)
        adapted = [(layer, name) for layer, name, _ in adapter_gates(model, self.adapter_name)]  # a packed one has none
        if not any(layer.smat_delta[self.adapter_name][name].requires_grad for layer, name in adapted):
            raise ConfigurationError(
                f"the weights of adapter {self.adapter_name!r} are frozen, so that only its router would learn: "
                "load it with is_trainable=True, or make it with inference_mode=False"
            )
        for layer, name in adapted:
            kind = getattr(layer.get_base_layer(), name).dtype
            if kind.itemsize < torch.float32.itemsize:
                raise ConfigurationError(
                    f"meta-tuning takes small steps from the backbone's weights, which round away in {kind}: load it "
                    "with dtype=torch.float32; mixed precision is for passes alone"
                )
        thaw_router(model, self.adapter_name)
        device = next(model.parameters()).device
        self.multipliers = nn.Parameter(torch.zeros(self.config.num_experts, device=device))
        self.multipliers.requires_grad_(self.constrains_sparsity)
        self.statistics: dict[str, Tensor] = {}
        self.loss_scale = 1.0  # of a gradient scaler
        self.chunks = Chunks(arguments.max_batch_size)
        self.train()

    @property
    def config(self) -> SMATConfig:
        """The adapter's configuration."""
        return adapter_config(self.model, self.adapter_name)

    @property
    def router(self) -> Router | None:
        """The adapter's router."""
        return adapter_router(self.model, self.adapter_name)

    @property
    def distils(self) -> bool:
        """Whether the loss has a teacher."""
        arguments = self.arguments
        return arguments.distillation_weight > 0 and (
            arguments.adapted_teacher_weight + arguments.pretrained_teacher_weight > 0
        )

    @property
    def recalls(self) -> bool:
        """Whether the backbone itself is a teacher."""
        return self.distils and self.arguments.pretrained_teacher_weight > 0

    @property
    def constrains_sparsity(self) -> bool:
        """Whether the loss has the terms that make gates sparse."""
        return self.config.sparsity_pattern == "learned" and self.arguments.sparsity_weight > 0

    def train(self, mode: bool = True) -> MetaLearner:
        """Training mode for gates and router; the backbone's passes stay deterministic."""
        super().train(mode)
        routing = set() if self.router is None else set(self.router.modules())
        for module in self.model.modules():
            recomputes = getattr(module, "gradient_checkpointing", False)  # transformers does so in training mode only
            if module is not self.model and module not in routing and not recomputes:
                module.training = False
        return self

    def forward(self, episodes: Sequence[Episode], uniform: Tensor | None = None) -> dict[str, Tensor]:
        """Weighted loss terms, summed over the episodes and divided by `episodes_per_step`.

        Their gradients are taken while they are computed, an episode at a time: the memory of one suffices for all.

        Args:
            episodes: This process's share of an update.
            uniform: Noise of the router, `[len(episodes), M]`; by default drawn from each episode's own seed, so that
                it does not depend on the number of processes.

        Returns:
            `query_ce`, and as far as they are switched on `query_kd`, `sparsity`, `lagrangian`, `router_z`. Figures for
            logging are left in `statistics`.
        """
        noise = [self._noise(episode) for episode in episodes] if uniform is None else list(uniform)
        size = self.arguments.episodes_per_merge
        results: list[EpisodeResult] = []
        for start in range(0, len(episodes), size):
            together = episodes[start : start + size]
            probes = [self._next_probe(episode, noise[start + n]) for n, episode in enumerate(together)]
            merged = interpolate_tasks(self.model, torch.stack([probe.routed.weights for probe in probes]))
            for episode, probe in zip(together, probes, strict=True):
                result = self.chunks.within_memory(partial(self.episode, episode, probe, merged.pop(0)), episode)
                results.append(result)

        terms = {name: torch.stack([result.terms[name] for result in results]).sum() for name in results[0].terms}
        weights = torch.stack([result.routed.weights.detach() for result in results])
        gates = sparsity(self.model, training=True)
        if self.constrains_sparsity:  # once for all episodes: linear in their expert weights
            target, weight, total = self.config.target_sparsity, self.arguments.sparsity_weight, weights.sum(0)
            reset_multipliers_(self.multipliers, gates, target)
            terms["sparsity"] = weight * sparsity_loss(expected_l0(self.model), self.multipliers, total, target)
            terms["lagrangian"] = weight * multiplier_loss(gates, self.multipliers, total, target)
        self.statistics = {
            "accuracy": torch.stack([result.accuracy for result in results]).mean(),
            "sparsity": gates.mean(),
            "expert_weights": weights.mean(0),
        }
        return {name: term / self.arguments.episodes_per_step for name, term in terms.items()}

    def probe(self, episode: Episode, uniform: Tensor | None = None) -> Probe:
        """What the backbone's own weights say of an episode, and how the router mixes the experts for it."""
        with torch.no_grad(), task(self.model, {}):  # support and query in one batch
            images = torch.cat([episode.support, episode.query]) if self.recalls else episode.support
            frozen = self._features(images)
        prototypes = class_means(frozen[: len(episode.support)], episode.support_labels)
        return Probe(prototypes, frozen[len(episode.support) :], route(self.model, prototypes, uniform=uniform))

    def episode(self, episode: Episode, probe: Probe, weights: TaskWeights) -> EpisodeResult:
        """The training forward on one episode, without the terms that depend on the gates alone."""
        names, found = list(weights), list[Tensor]()

        def losses(leaves: list[Tensor]) -> Tensor:
            terms, logits = self.query_terms(episode, probe, dict(zip(names, leaves, strict=True)))
            found[:] = [logits.detach()]
            return torch.stack(terms)

        def merged_again() -> list[Tensor]:
            return [*interpolate(self.model, probe.routed.weights.detach()).values()]

        values = immediate(losses, [*weights.values()], merged_again, self.loss_scale)
        terms = dict(zip(("query_ce", "query_kd"), values, strict=False))
        if self.arguments.router_z_weight > 0 and self.router is not None:
            terms["router_z"] = self.arguments.router_z_weight * router_z_loss(probe.routed.logits)
        accuracy = (found[0].argmax(-1) == episode.query_labels).float().mean()
        return EpisodeResult(terms, probe.routed, found[0], accuracy)

    def query_terms(self, episode: Episode, probe: Probe, weights: TaskWeights) -> tuple[list[Tensor], Tensor]:
        """The terms of the query, cross-entropy and (where it is on) distillation, and the query's logits."""
        arguments, model = self.arguments, self.model
        with task(model, weights):
            support_features = self._features(episode.support)
        prototypes = class_means(support_features, episode.support_labels)
        weights, prototypes = self.inner_step(weights, prototypes, support_features, episode.support_labels)

        with task(model, weights):
            query_features = self._features(episode.query)
        logits = cosine_logits(query_features, prototypes, arguments.logit_scale)
        loss = query_loss(logits, episode.query_labels)

        terms = [(1 - arguments.distillation_weight) * loss]
        if self.distils:
            teachers = []
            if arguments.adapted_teacher_weight > 0:
                adapted = self.adapted_teacher(loss, weights, prototypes, episode.query)
                teachers.append((arguments.adapted_teacher_weight, adapted))
            if self.recalls:
                pretrained = cosine_logits(probe.query, probe.prototypes, arguments.logit_scale)
                teachers.append((arguments.pretrained_teacher_weight, pretrained))
            divergences = [
                weight * distillation_loss(logits, teacher, arguments.distillation_temperature)
                for weight, teacher in teachers
            ]
            terms.append(arguments.distillation_weight * torch.stack(divergences).sum())
        return terms, logits

    def inner_step(
        self, weights: TaskWeights, prototypes: Tensor, support_features: Tensor, labels: Tensor
    ) -> tuple[TaskWeights, Tensor]:
        """One first-order step on the support (METHOD 7.2).

        The gradient is a constant; the prototypes move by it in value while gradients still pass through them.
        """
        rate = self.arguments.inner_lr
        if rate == 0:  # as after a step, the query's own use of the weights is told apart from the prototypes'
            return {name: weight.view_as(weight) for name, weight in weights.items()}, prototypes
        fixed = prototypes.detach().requires_grad_()
        loss = query_loss(cosine_logits(support_features, fixed, self.arguments.logit_scale), labels)
        gradients = _gradients(loss, [*weights.values(), fixed])
        return _stepped(weights, gradients[:-1], rate), prototypes - rate * gradients[-1]

    def adapted_teacher(self, loss: Tensor, weights: TaskWeights, prototypes: Tensor, query: Tensor) -> Tensor:
        """Logits after one more step, on the labelled query (METHOD 7.4); the student's own loss gives its gradient."""
        rate = self.arguments.adapted_teacher_lr
        gradients = _gradients(loss, [*weights.values(), prototypes])
        with torch.no_grad(), task(self.model, _stepped(weights, gradients[:-1], rate)):
            moved = prototypes - rate * gradients[-1]
            return cosine_logits(self._features(query), moved, self.arguments.logit_scale)

    @torch.no_grad()
    def validate(self, episode: Episode) -> float:
        """Query accuracy of the evaluation forward on one episode (METHOD 6)."""
        with evaluation_mode(self):
            with task(self.model, {}):
                frozen = self._features(episode.support)
            routed = route(self.model, class_means(frozen, episode.support_labels))
            with task(self.model, routed.weights):
                found = self._features(torch.cat([episode.support, episode.query]))
        predicted = query_logits(found, episode.support_labels).argmax(-1)
        return float((predicted == episode.query_labels).float().mean())

    def warnings(self) -> list[str]:
        """What went wrong in a run, one sentence each, by the figures of its last update."""
        found = []
        target, last = self.config.target_sparsity, self.statistics
        if self.constrains_sparsity and last and abs(last["sparsity"].item() - target) > SPARSITY_TOLERANCE:
            found.append(f"training ended at a sparsity of {last['sparsity'].item():.3f}; the target was {target:.3f}")
        if self.router is not None and last:
            weights = last["expert_weights"]
            if (weights - 1 / len(weights)).abs().max() < EVEN_TOLERANCE:
                found.append("expert weights stayed even: the router did not learn to tell tasks apart")
        return found

    def _next_probe(self, episode: Episode, uniform: Tensor) -> Probe:
        """[`probe`] in its place in the whole update: the router moves on by the episodes of every process."""
        found: Probe | None = None
        for process in range(self.num_processes):
            if self.router is not None:
                self.router.advance_spectral_norm()
            if process == self.process_index:
                found = self.chunks.within_memory(partial(self.probe, episode, uniform), episode)
            if self.router is not None:
                self.router.episodes_seen += 1
        assert found is not None
        return found

    def _features(self, images: Tensor) -> Tensor:
        return self.chunks.features(partial(features, self.model), images)

    def _noise(self, episode: Episode) -> Tensor:
        draws = np.random.default_rng((self.arguments.seed, episode.index))
        return torch.from_numpy(draws.random(self.config.num_experts, dtype=np.float32)).to(episode.support.device)


def _gradients(loss: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a loss whose graph is still needed; zero where the loss does not depend on a tensor."""
    return torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True, materialize_grads=True)


def _stepped(weights: TaskWeights, gradients: Sequence[Tensor], rate: float) -> TaskWeights:
    """Weights after one step of gradient descent."""
    moved = torch._foreach_sub(list(weights.values()), list(gradients), alpha=rate)
    return dict(zip(weights, moved, strict=True))
