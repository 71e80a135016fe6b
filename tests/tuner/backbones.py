"""Tiny backbones that every action of an adapter's life is tried on. A new backbone is one more row of `BACKBONES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ResNetConfig,
    ResNetModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from smat_peft import SMATConfig

EXPERTS = 3
TRANSFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "initializer_range": 0.3,  # so that features depend on the image
}
DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class Backbone:
    """How to build a backbone, and what of it is out of the ordinary.

    Attributes:
        build: Makes one; its images are `[N, 3, 16, 16]`.
        settings: What its SMATConfig needs.
        feature: What `feature="auto"` means for it.
        width: How wide that is.
        left_alone: Beginnings of the names of parameters that are not adapted by default.
        checkpoints: Ways of gradient checkpointing that it knows, by `use_reentrant`.
    """

    build: Callable[[], nn.Module]
    settings: dict[str, Any] = field(default_factory=dict)
    feature: str = "cls"
    width: int = 16
    left_alone: tuple[str, ...] = ()
    checkpoints: tuple[bool, ...] = (True, False)

    def base(self) -> nn.Module:
        """The backbone with the same weights every time, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build().eval()

    def config(self, **changes: Any) -> SMATConfig:
        """Experts with a random delta, so that they do something."""
        settings: dict[str, Any] = {
            "num_experts": EXPERTS,
            "init_weights": False,
            "router_temperature": (0.1, 0.1),  # so that tasks differ clearly
        }
        return SMATConfig(**settings | self.settings | changes)

    def adapted(self, seed: int = 1, dtype: torch.dtype = torch.float32, **changes: Any) -> PeftModel:
        """The backbone with experts, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return get_peft_model(self.base().to(dtype), self.config(**changes)).eval()


class Gain(nn.Module):
    """Owns a vector itself and has children, too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(width))
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(self.linear(tokens) * self.gain)


class Plain(nn.Module):
    """Every way in which a module that knows nothing of transformers may hold parameters."""

    def __init__(self) -> None:
        super().__init__()
        width = 8
        self.offset = nn.Parameter(torch.randn(3, 1, 1))
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        self.batch_norm = nn.BatchNorm2d(width)
        self.block = Gain(width)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.used_twice = nn.Linear(width, width)
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.two_names = self.same_module = nn.Linear(width, width)
        self.tied, self.tied_to = nn.Linear(width, width), nn.Linear(width, width)
        self.tied.weight = self.tied_to.weight
        self.checkpointing: dict[str, Any] | None = None
        nn.init.uniform_(self.batch_norm.running_mean)
        nn.init.uniform_(self.batch_norm.running_var, 0.5, 2.0)

    def gradient_checkpointing_enable(self, kwargs: dict[str, Any]) -> None:
        self.checkpointing = kwargs

    def forward(self, pixel_values: Tensor) -> Tensor:
        maps = self.batch_norm(self.stem(pixel_values + self.offset)).relu()
        tokens = maps.flatten(2).transpose(1, 2)
        tokens = self._checkpointed(self.block, tokens)
        features = self._checkpointed(self._last, tokens).mean(1) * self.scale
        return features + self.tied_to(self.tied(features)) + self.two_names(self.same_module(features))

    def _last(self, tokens: Tensor) -> Tensor:
        return self.frozen(self.used_twice(self.used_twice(tokens).relu()).relu())

    def _checkpointed(self, function: Callable[..., Tensor], tokens: Tensor) -> Tensor:
        if self.checkpointing is None or not self.training:
            return function(tokens)
        return checkpoint(function, tokens, **self.checkpointing)


def timm_vit() -> nn.Module:
    timm = pytest.importorskip("timm")
    vit: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0
    )
    return vit


NO_CHECKPOINTS: tuple[bool, ...] = ()

BACKBONES: dict[str, Backbone] = {
    "vit": Backbone(
        lambda: ViTModel(ViTConfig(**TRANSFORMER, **DROPOUT, intermediate_size=32)), left_alone=("pooler.",)
    ),
    "deit": Backbone(
        lambda: DeiTModel(DeiTConfig(**TRANSFORMER, **DROPOUT, intermediate_size=32)), left_alone=("pooler.",)
    ),
    "dinov2": Backbone(
        lambda: Dinov2Model(Dinov2Config(**TRANSFORMER, **DROPOUT, mlp_ratio=2)), left_alone=("embeddings.mask_token",)
    ),
    "dinov2_with_registers": Backbone(
        lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**TRANSFORMER, mlp_ratio=2, num_register_tokens=2)),
        left_alone=("embeddings.mask_token",),
    ),
    "dinov3": Backbone(
        lambda: DINOv3ViTModel(
            DINOv3ViTConfig(**TRANSFORMER, intermediate_size=32, num_register_tokens=2, pos_embed_rescale=None)
        ),
        left_alone=("embeddings.mask_token",),
    ),
    "clip": Backbone(lambda: CLIPVisionModel(CLIPVisionConfig(**TRANSFORMER, intermediate_size=32)), feature="pooler"),
    "siglip": Backbone(
        lambda: SiglipVisionModel(SiglipVisionConfig(**TRANSFORMER, intermediate_size=32)),
        feature="pooler",
    ),
    "swin": Backbone(
        lambda: SwinModel(
            SwinConfig(
                image_size=16,
                patch_size=2,
                embed_dim=8,
                depths=[1, 1],
                num_heads=[2, 2],
                window_size=2,
                mlp_ratio=2,
                drop_path_rate=0.0,
                initializer_range=0.3,
            )
        ),
        feature="pooler",
    ),
    "convnext": Backbone(
        lambda: ConvNextModel(
            ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], patch_size=2, initializer_range=0.3)
        ),
        feature="pooler",
        checkpoints=NO_CHECKPOINTS,
    ),
    "resnet": Backbone(
        lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")),
        feature="pooler",
        checkpoints=NO_CHECKPOINTS,
    ),
    "timm": Backbone(timm_vit, settings={"feature_dim": 16}, feature="output", checkpoints=NO_CHECKPOINTS),
    "plain": Backbone(
        Plain,
        settings={"feature_dim": 8},
        feature="output",
        width=8,
        left_alone=("two_names.", "tied.weight"),
    ),
}


def checkpoint_gradients(model: nn.Module, use_reentrant: bool) -> None:
    """Turn gradient checkpointing on; transformers is renaming its method."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})  # type: ignore[operator]


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """All that a model says of images, `[N, ...]`; of a transformers model the hidden states and what is pooled."""
    result = model(images)
    if isinstance(result, Tensor):
        return result
    pooled = result.pooler_output
    hidden = result.last_hidden_state.flatten(1)
    return hidden if pooled is None else torch.cat([hidden, pooled.flatten(1)], dim=1)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """The same sums of the same numbers: some processors round by where in memory these lie, so not to the bit."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def task_images(seed: int, classes: int = 3, shots: int = 2) -> tuple[Tensor, Tensor]:
    """Support images of a task, each class around a centre of its own, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(shots)
    centres = torch.randn(classes, 3, 16, 16, generator=generator)
    return 2 * centres[labels] + torch.randn(len(labels), 3, 16, 16, generator=generator), labels
