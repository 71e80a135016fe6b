"""Fine-tuning a backbone on a support set through its prototypes (METHOD 11b and c)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim import AdamW

from smat_peft.errors import ConfigurationError
from smat_peft.experts.prototypes import class_means, cosine_logits
from smat_peft.few_shot.augmentation import DiffAugment
from smat_peft.few_shot.backbone import base_parameters, device_of, plain_copy
from smat_peft.few_shot.lora import DROPOUT, inject_lora, merged_lora
from smat_peft.tuner.features import extract_features, in_chunks
from smat_peft.tuner.shadow import empty_caches

KINDS = ("prototype", "full", "lora")

BETAS = (0.9, 0.999)  # METHOD 11b
WEIGHT_DECAY = 1e-2  # METHOD 11b


@dataclass(frozen=True)
class Adaptation:
    """What is done on a support set after the experts were mixed (METHOD 11).

    Attributes:
        kind: `"prototype"`: nothing but prototypes; `"full"`: all parameters of the backbone are fine-tuned; `"lora"`:
            PEFT's LoRA on the query and value projections of attention.
        steps: Steps of fine-tuning.
        learning_rate: AdamW's, as it is used: by METHOD 11 ten times as high for LoRA as for full fine-tuning.
        augment: Whether the loss is taken on images changed by DiffAugment; prototypes are always of clean images.
        lora_dropout: Of LoRA's input, while fine-tuning only. (The authors' code drops out in predictions, too.)
        seed: Of the augmentation, of LoRA's first weights and its dropout.

    Raises:
        ConfigurationError: A field is out of range.
    """

    kind: str = "prototype"
    steps: int = 50
    learning_rate: float = 1e-3
    augment: bool = True
    lora_dropout: float = DROPOUT
    seed: int = 0

    @property
    def takes_steps(self) -> bool:
        """Whether any weight would change."""
        return self.kind != "prototype" and self.steps > 0 and self.learning_rate > 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigurationError(f"adaptation must be prototype, full or lora, got {self.kind!r}")
        if self.steps < 0:
            raise ConfigurationError(f"steps must be at least 0, got {self.steps}")
        if not 0 <= self.learning_rate < float("inf"):
            raise ConfigurationError(f"learning_rate must be at least 0, got {self.learning_rate}")
        if not 0 <= self.lora_dropout < 1:
            raise ConfigurationError(f"lora_dropout must be at least 0 and below 1, got {self.lora_dropout}")


def fine_tune(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    support: Float[Tensor, "N 3 H W"],
    labels: Int[Tensor, " N"],
    adaptation: Adaptation,
    *,
    feature: str,
    batch_size: int,
) -> dict[str, Tensor]:
    """Fine-tune a copy of a model's backbone, from given weights on.

    Args:
        model: The model; it is not changed.
        weights: Where to start, by the backbone's parameter names; its own values for those left out.
        support: Pixels.
        labels: `0..C-1`, each at least once.
        adaptation: How, of kind `"full"` or `"lora"`.
        feature: Which feature of the backbone to classify by.
        batch_size: A larger support goes through the backbone in parts of so many images, whose activations are
            computed again for the backward pass; the gradients are the same.

    Returns:
        The weights that fine-tuning changed, by the backbone's parameter names, in its precision.
    """
    backbone = plain_copy(model, weights)
    parameters = {name: place.parameter for name, place in base_parameters(backbone).items()}
    precisions = {name: parameter.dtype for name, parameter in parameters.items()}
    widest = functools.reduce(torch.promote_types, precisions.values(), torch.float32)
    backbone.to(widest)  # half precision would swallow small steps
    device = device_of(backbone)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.enable_grad():
        torch.manual_seed(adaptation.seed)
        if adaptation.kind == "lora":
            inject_lora(backbone, adaptation.lora_dropout)
        else:
            for parameter in parameters.values():
                parameter.data = parameter.data.clone()
                parameter.requires_grad_(True)
        _descend(backbone, support.to(device), labels.to(device), adaptation, feature, batch_size)
    with torch.no_grad():
        if adaptation.kind == "lora":
            changed = merged_lora(backbone)
        else:
            changed = {name: p.detach() for name, p in parameters.items() if p.grad is not None}
        return {name: tensor.to(precisions[name]) for name, tensor in changed.items()}


def _descend(
    backbone: nn.Module, support: Tensor, labels: Tensor, adaptation: Adaptation, feature: str, batch_size: int
) -> None:
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigurationError(f"{type(backbone).__name__} has no parameters to fine-tune; choose 'prototype'")
    optimizer = AdamW(trained, lr=adaptation.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY)
    augment: Callable[[Tensor], Tensor] = DiffAugment(adaptation.seed) if adaptation.augment else lambda images: images

    def forward(images: Tensor) -> Tensor:
        for module in backbone.modules():
            empty_caches(module)  # of weights before a step, and of graphs that are gone
        return extract_features(backbone, images, feature)

    for _ in range(adaptation.steps):
        clean = in_chunks(forward, support, batch_size)
        changed = augment(support)
        features = clean if changed is support else in_chunks(forward, changed, batch_size)
        loss = F.cross_entropy(cosine_logits(features, class_means(clean, labels)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
