"""The router: class prototypes of a support set -> weights of the experts (METHOD 3).

All parameters are direct attributes of one module: PEFT and transformers find an adapter's name in a checkpoint key
only when at most one more part follows it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

RouterPooling = Literal["mean", "first"]

NORM_EPS = 1e-5  # LayerNorm of the router's block, METHOD 3.3
POWER_ITERATION_EPS = 1e-12  # METHOD 3.3
FIRST_POWER_ITERATIONS = 15  # so that an untrained router is normalised, too; as torch's own spectral norm does
WEIGHT_SUM_FLOOR = 1e-8  # METHOD 3.6
SKILL_TOKEN_STD = 1e-3  # METHOD 1
SPECTRAL_WEIGHTS = ("qkv", "proj", "fc1", "fc2")


@dataclass(frozen=True)
class ExpertWeights:
    """What the router says of a task: `logits` [M], `scores` in [0, 1] [M], and the mixing `weights` [M]."""

    logits: Tensor
    scores: Tensor
    weights: Tensor


def even_weights(num_experts: int, device: torch.device | None = None) -> ExpertWeights:
    """The mix where nothing is known of the task: every expert weighs 1/M."""
    ones = torch.ones(num_experts, device=device)
    return ExpertWeights(logits=torch.zeros_like(ones), scores=ones, weights=ones / num_experts)


def largest_head_count(width: int, heads: int) -> int:
    """The largest number of attention heads, at most `heads`, that divides `width`."""
    return next(count for count in range(min(heads, width), 0, -1) if width % count == 0)


class Router(nn.Module):
    """One pre-norm Transformer block over class prototypes and skill tokens, and a key for each expert.

    Args:
        width: Feature width D.
        num_experts: M.
        heads: Attention heads; where they do not divide the width, the largest smaller number that does.
        mlp_ratio: Hidden width of the block's MLP over D.
        skill_tokens: Learned tokens beside the prototypes.
        spectral_norm: Divide the four linear weights by their largest singular value, estimated by power iteration.
        pooling: Task embedding: `"mean"` over the class positions, or the `"first"` class's alone (the reference's,
            which depends on how classes are numbered).
        temperature: Its start and end.
        temperature_episodes: Training episodes over which it falls linearly from start to end.
    """

    episodes_seen: Tensor

    def __init__(
        self,
        width: int,
        num_experts: int,
        *,
        heads: int = 4,
        mlp_ratio: float = 2.0,
        skill_tokens: int = 4,
        spectral_norm: bool = True,
        pooling: RouterPooling = "mean",
        temperature: tuple[float, float] = (5.0, 0.5),
        temperature_episodes: int = 18_000,
    ) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.heads = largest_head_count(width, heads)
        self.spectral_norm = spectral_norm
        self.pooling = pooling
        self.temperature_range = temperature
        self.temperature_episodes = temperature_episodes

        self.keys = nn.Parameter(torch.empty(num_experts, width))
        self.skill_tokens = nn.Parameter(torch.empty(1, skill_tokens, width))
        self.norm1_weight = nn.Parameter(torch.empty(width))
        self.norm1_bias = nn.Parameter(torch.empty(width))
        self.qkv_weight = nn.Parameter(torch.empty(3 * width, width))
        self.proj_weight = nn.Parameter(torch.empty(width, width))
        self.proj_bias = nn.Parameter(torch.empty(width))
        self.norm2_weight = nn.Parameter(torch.empty(width))
        self.norm2_bias = nn.Parameter(torch.empty(width))
        self.fc1_weight = nn.Parameter(torch.empty(hidden, width))
        self.fc1_bias = nn.Parameter(torch.empty(hidden))
        self.fc2_weight = nn.Parameter(torch.empty(width, hidden))
        self.fc2_bias = nn.Parameter(torch.empty(width))
        self.register_buffer("episodes_seen", torch.zeros((), dtype=torch.int64))
        if spectral_norm:
            for name in SPECTRAL_WEIGHTS:
                rows, columns = getattr(self, f"{name}_weight").shape
                self.register_buffer(f"{name}_u", torch.empty(rows))
                self.register_buffer(f"{name}_v", torch.empty(columns))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew (METHOD 1 and 3)."""
        width = self.keys.shape[1]
        nn.init.normal_(self.keys, std=math.sqrt(2 / width))
        nn.init.normal_(self.skill_tokens, std=SKILL_TOKEN_STD)
        for name in ("norm1", "norm2"):
            nn.init.ones_(getattr(self, f"{name}_weight"))
            nn.init.zeros_(getattr(self, f"{name}_bias"))
        for name in SPECTRAL_WEIGHTS:
            weight = getattr(self, f"{name}_weight")
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # torch's own default of a Linear
            bound = 1 / math.sqrt(weight.shape[1])
            if hasattr(self, f"{name}_bias"):
                nn.init.uniform_(getattr(self, f"{name}_bias"), -bound, bound)
            if self.spectral_norm:
                for side in "uv":
                    vector = getattr(self, f"{name}_{side}")
                    with torch.no_grad():
                        vector.copy_(F.normalize(torch.randn_like(vector), dim=0, eps=POWER_ITERATION_EPS))
        if not self.keys.is_meta:
            for _ in range(FIRST_POWER_ITERATIONS):
                self.advance_spectral_norm()
        self.episodes_seen.zero_()

    @property
    def temperature(self) -> float:
        """Temperature of the scores after the episodes seen so far (METHOD 3.4)."""
        start, end = self.temperature_range
        fallen = (start - end) * int(self.episodes_seen) / max(1, self.temperature_episodes)
        return max(end, start - fallen)

    @torch.no_grad()
    def advance_spectral_norm(self) -> None:
        """One power iteration for each linear weight: once per training episode, before it is routed."""
        if not self.spectral_norm:
            return
        for name in SPECTRAL_WEIGHTS:
            weight = getattr(self, f"{name}_weight")
            u, v = getattr(self, f"{name}_u"), getattr(self, f"{name}_v")
            v.copy_(F.normalize(weight.T @ u, dim=0, eps=POWER_ITERATION_EPS))
            u.copy_(F.normalize(weight @ v, dim=0, eps=POWER_ITERATION_EPS))

    def embed(self, prototypes: Float[Tensor, "C D"]) -> Float[Tensor, " D"]:
        """Task embedding of the class prototypes."""
        tokens = torch.cat([prototypes, self.skill_tokens[0]])
        tokens = tokens + self._attention(self._norm(tokens, "norm1"))
        hidden = F.gelu(F.linear(self._norm(tokens, "norm2"), self._weight("fc1"), self.fc1_bias))
        tokens = tokens + F.linear(hidden, self._weight("fc2"), self.fc2_bias)
        return tokens[0] if self.pooling == "first" else tokens[: len(prototypes)].mean(0)

    def forward(
        self,
        prototypes: Float[Tensor, "C D"],
        *,
        uniform: Float[Tensor, " M"] | None = None,
        generator: torch.Generator | None = None,
    ) -> ExpertWeights:
        """Weights of the experts for a task.

        Args:
            prototypes: Class means of the support's pre-trained features.
            uniform: The uniform draws of the relaxed Bernoulli noise; in training mode only, drawn where not given.
            generator: Where to draw them from.
        """
        if generator is not None and uniform is not None:
            raise ValueError("give the noise itself (uniform) or where to draw it from (generator), not both")
        with torch.autocast(prototypes.device.type, enabled=False):
            logits = self.keys @ self.embed(prototypes.to(self.keys.dtype))
            if self.training:
                if uniform is None:
                    uniform = torch.rand(logits.shape, generator=generator).to(logits)
                scores = relaxed_bernoulli(logits, uniform, self.temperature)
            else:
                scores = torch.sigmoid(logits / self.temperature)
            floor = max(WEIGHT_SUM_FLOOR, torch.finfo(scores.dtype).tiny)
            weights = scores / (scores.sum() + floor) if len(scores) > 1 else scores
        return ExpertWeights(logits=logits, scores=scores, weights=weights)

    def _norm(self, tokens: Tensor, name: str) -> Tensor:
        weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
        return F.layer_norm(tokens, tokens.shape[-1:], weight, bias, NORM_EPS)

    def _attention(self, tokens: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        count, width = tokens.shape
        projected = F.linear(tokens, self._weight("qkv"))
        query, key, value = projected.view(count, 3, self.heads, -1).permute(1, 2, 0, 3)  # each [heads, T, D / heads]
        attended = F.scaled_dot_product_attention(query, key, value)
        return F.linear(attended.transpose(0, 1).reshape(count, width), self._weight("proj"), self.proj_bias)

    def _weight(self, name: str) -> Tensor:
        weight: Tensor = getattr(self, f"{name}_weight")
        if not self.spectral_norm:
            return weight
        # Copies, since the next power iteration writes to the buffers while this graph may still be alive.
        u, v = getattr(self, f"{name}_u").clone(), getattr(self, f"{name}_v").clone()
        return weight / torch.dot(u, weight @ v)


def relaxed_bernoulli(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """A reparameterised sample of the relaxed Bernoulli distribution (METHOD 3.5), in the shape of `logits`."""
    limits = torch.finfo(logits.dtype)
    probability = torch.sigmoid(logits).clamp(limits.eps, 1 - limits.eps)
    uniform = uniform.to(logits).clamp(limits.eps, 1 - limits.eps)
    sample = torch.sigmoid((torch.logit(uniform) + torch.logit(probability)) / temperature)
    return sample.clamp(limits.tiny, 1 - limits.eps)
