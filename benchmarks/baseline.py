"""The straightforward implementation of the method, which smat_peft is measured against.

METHOD 2 to 8 as its authors wrote it down, each step in the plain operations of torch and in the order of the text:
gates with the experts last, gate values and statistics anew in every episode, and four passes over the support and four
over the query. The choices of METHOD 13 hold, so that it computes what smat_peft computes
(tests/benchmarks/test_baseline.py), and nothing is done slower than the text asks for. One choice is left open: the
authors draw noise for every gate in every episode (METHOD 2), of at most 4e-6, which smat_peft leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import ViTModel

from smat_peft.episodes.episode import Episode
from smat_peft.experts.gates import (
    EVAL_TEMPERATURE,
    EXPECTED_L0_SHIFT,
    GATE_LIMIT,
    STRETCH_HIGH,
    STRETCH_LOW,
    TRAIN_TEMPERATURE,
)
from smat_peft.experts.prototypes import class_means, cosine_logits
from smat_peft.experts.router import Router, RouterPooling
from smat_peft.meta_tuning.arguments import MetaTuningArguments
from smat_peft.meta_tuning.objective import (
    distillation_loss,
    multiplier_loss,
    query_loss,
    reset_multipliers_,
    router_z_loss,
    sparsity_loss,
)

Tensors = dict[str, Tensor]

NOISE = 1e-6  # epsilon of METHOD 2: half the width of the uniform draw around 1/2


def gate_values(logits: Tensor, temperature: float) -> Tensor:
    """Gate values of logits `[*shape, M]` (METHOD 2)."""
    stretched = torch.sigmoid(logits / temperature) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW
    return torch.clamp(stretched, 0.0, 1.0)


def noisy(logits: Tensor) -> Tensor:
    """Gate logits and the logistic noise of a uniform draw (METHOD 2)."""
    uniform = torch.empty_like(logits).uniform_(0.5 - NOISE, 0.5 + NOISE)
    return torch.log(uniform) - torch.log(1 - uniform) + logits


def open_gates(gates: Tensor) -> Tensor:
    """How many gate values of each expert are above 0, `[M]`; no gradient."""
    return (gates > 0).flatten(0, -2).sum(0)


def expected_open_gates(logits: Tensor) -> Tensor:
    """Expected number of open gates of each expert, `[M]` (METHOD 2)."""
    closed = torch.sigmoid(-EXPECTED_L0_SHIFT - logits).clamp(NOISE, 1 - NOISE)
    return (1 - closed).flatten(0, -2).sum(0)


def merge(base: Tensor, delta: Tensor, gates: Tensor, weights: Tensor) -> Tensor:
    """Task weights of one parameter from gate values `[*shape, M]` and expert weights `[M]` (METHOD 4)."""
    return base + (gates @ weights) * delta


class Baseline:
    """A transformers ViT with experts over all its parameters, and its training.

    Args:
        backbone: Without a pooler, on the device to run on; it is frozen.
        arguments: smat_peft's own; those that say how to compute, not what, mean nothing here.
        num_experts: M.
        target_sparsity: Sparsity that the constraint asks for.
        pooling: The router's.
        autocast: Type of the passes, where not float32.
        noise: Draw the authors' noise of training gates.
    """

    def __init__(
        self,
        backbone: ViTModel,
        arguments: MetaTuningArguments,
        *,
        num_experts: int = 8,
        target_sparsity: float = 0.9,
        pooling: RouterPooling = "mean",
        autocast: torch.dtype | None = None,
        noise: bool = False,
    ) -> None:
        self.backbone = backbone.eval().requires_grad_(False)
        self.arguments = arguments
        self.target_sparsity = target_sparsity
        self.autocast = autocast
        self.noise = noise
        self.base: Tensors = dict(backbone.named_parameters())
        self.size = sum(tensor.numel() for tensor in self.base.values())
        self.device = next(iter(self.base.values())).device

        self.delta = {name: nn.Parameter(torch.zeros_like(tensor)) for name, tensor in self.base.items()}
        self.gate_logits = {
            name: nn.Parameter(torch.empty(*tensor.shape, num_experts, device=self.device).normal_(std=0.5))
            for name, tensor in self.base.items()
        }
        episodes = arguments.router_temperature_episodes
        router = Router(backbone.config.hidden_size, num_experts, pooling=pooling, temperature_episodes=episodes)
        self.router = router.to(self.device)
        self.multipliers = nn.Parameter(torch.zeros(num_experts, device=self.device))

        delta = {
            "params": list(self.delta.values()),
            "lr": arguments.delta_lr,
            "momentum": arguments.delta_momentum,
            "weight_decay": arguments.delta_weight_decay,
        }
        gates = {"params": list(self.gate_logits.values()), "lr": arguments.gate_lr}
        multipliers = {"params": [self.multipliers], "lr": arguments.multiplier_lr}
        self.optimiser = torch.optim.SGD([delta, gates, multipliers])
        self.router_optimiser = torch.optim.AdamW(
            self.router.parameters(), lr=arguments.router_lr, weight_decay=arguments.router_weight_decay
        )

    # ----- the pieces -----

    def gates(self, temperature: float) -> Tensors:
        """All gate values, `[*shape, M]` each."""
        return {name: gate_values(logits, temperature) for name, logits in self.gate_logits.items()}

    def training_gates(self) -> Tensors:
        """The same as training sees them: with noise where it is drawn."""
        if not self.noise:
            return self.gates(TRAIN_TEMPERATURE)
        return {name: gate_values(noisy(logits), TRAIN_TEMPERATURE) for name, logits in self.gate_logits.items()}

    def sparsity(self, gates: Tensors) -> Tensor:
        """Share of gates at 0, by expert, `[M]`."""
        return 1 - torch.stack([open_gates(tensor) for tensor in gates.values()]).sum(0) / self.size

    def expected_l0(self) -> Tensor:
        """Expected share of open gates, by expert, `[M]`."""
        return torch.stack([expected_open_gates(logits) for logits in self.gate_logits.values()]).sum(0) / self.size

    def task_weights(self, gates: Tensors, weights: Tensor) -> Tensors:
        """Task weights by the backbone's parameter names, merged in float32."""
        with torch.autocast(self.device.type, enabled=False):
            return {name: merge(base, self.delta[name], gates[name], weights) for name, base in self.base.items()}

    def features(self, images: Tensor, weights: Tensors | None = None) -> Tensor:
        """Features `[N, D]` of images with the given weights, or the backbone's own."""
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            output = functional_call(self.backbone, weights or {}, images, {"interpolate_pos_encoding": True})
        return output.last_hidden_state[:, 0]

    # ----- evaluation -----

    @torch.no_grad()
    def evaluate(self, episode: Episode) -> Tensor:
        """Query logits with evaluation gates and a router without noise (METHOD 6)."""
        self.router.eval()
        probe = class_means(self.features(episode.support), episode.support_labels)
        weights = self.task_weights(self.gates(EVAL_TEMPERATURE), self.router(probe).weights)
        prototypes = class_means(self.features(episode.support, weights), episode.support_labels)
        return cosine_logits(self.features(episode.query, weights), prototypes, self.arguments.logit_scale)

    # ----- training -----

    def episode(self, episode: Episode, uniform: Tensor | None = None) -> Tensors:
        """Weighted loss terms of one episode, divided by `episodes_per_step` (METHOD 7)."""
        arguments, labels = self.arguments, episode.support_labels
        self.router.train()

        with torch.no_grad():
            probe = class_means(self.features(episode.support), labels)
        self.router.advance_spectral_norm()
        routed = self.router(probe, uniform=uniform)
        gates = self.training_gates()
        weights = self.task_weights(gates, routed.weights)

        prototypes = class_means(self.features(episode.support, weights), labels)
        weights, prototypes = self.inner_step(episode, weights, prototypes)
        self.router.episodes_seen += 1

        student = cosine_logits(self.features(episode.query, weights), prototypes, arguments.logit_scale)
        teacher = self.adapted_teacher(episode, weights, prototypes)
        with torch.no_grad():
            recalled = class_means(self.features(episode.support), labels)
            pretrained = cosine_logits(self.features(episode.query), recalled, arguments.logit_scale)

        sparsity, target = self.sparsity(gates), self.target_sparsity
        reset_multipliers_(self.multipliers, sparsity, target)
        temperature, share = arguments.distillation_temperature, arguments.distillation_weight
        distillation = arguments.adapted_teacher_weight * distillation_loss(student, teacher, temperature)
        distillation = distillation + arguments.pretrained_teacher_weight * distillation_loss(
            student, pretrained, temperature
        )
        constraint = sparsity_loss(self.expected_l0(), self.multipliers, routed.weights, target)
        terms = {
            "query_ce": (1 - share) * query_loss(student, episode.query_labels),
            "query_kd": share * distillation,
            "sparsity": arguments.sparsity_weight * constraint,
            "lagrangian": arguments.sparsity_weight
            * multiplier_loss(sparsity, self.multipliers, routed.weights, target),
            "router_z": arguments.router_z_weight * router_z_loss(routed.logits),
        }
        return {name: term / arguments.episodes_per_step for name, term in terms.items()}

    def inner_step(self, episode: Episode, weights: Tensors, prototypes: Tensor) -> tuple[Tensors, Tensor]:
        """One first-order step on the support (METHOD 7.2)."""
        fixed, rate = prototypes.detach().requires_grad_(), self.arguments.inner_lr
        logits = cosine_logits(self.features(episode.support, weights), fixed, self.arguments.logit_scale)
        loss = query_loss(logits, episode.support_labels)
        *gradients, of_prototypes = torch.autograd.grad(loss, [*weights.values(), fixed])
        return step(weights, gradients, rate), prototypes - rate * of_prototypes

    def adapted_teacher(self, episode: Episode, weights: Tensors, prototypes: Tensor) -> Tensor:
        """Query logits after a step on the query's own labels (METHOD 7.4)."""
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        head, rate = prototypes.detach().requires_grad_(), self.arguments.adapted_teacher_lr
        logits = cosine_logits(self.features(episode.query, leaves), head, self.arguments.logit_scale)
        loss = query_loss(logits, episode.query_labels)
        *gradients, of_head = torch.autograd.grad(loss, [*leaves.values(), head])
        with torch.no_grad():
            moved = self.features(episode.query, step(leaves, gradients, rate))
            return cosine_logits(moved, head - rate * of_head, self.arguments.logit_scale)

    def update(self, episodes: Sequence[Episode], uniform: Sequence[Tensor | None] | None = None) -> None:
        """One update (METHOD 8)."""
        for episode, noise in zip(episodes, uniform or [None] * len(episodes), strict=True):
            torch.stack(list(self.episode(episode, noise).values())).sum().backward()
        nn.utils.clip_grad_norm_(self.gate_logits.values(), self.arguments.max_gate_grad_norm)
        nn.utils.clip_grad_norm_(self.router.parameters(), self.arguments.max_router_grad_norm)
        for optimiser in (self.optimiser, self.router_optimiser):
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            for logits in self.gate_logits.values():
                logits.clamp_(-GATE_LIMIT, GATE_LIMIT)


def step(weights: Mapping[str, Tensor], gradients: Sequence[Tensor], rate: float) -> Tensors:
    """Weights after one step of gradient descent."""
    return {name: weight - rate * g for (name, weight), g in zip(weights.items(), gradients, strict=True)}
