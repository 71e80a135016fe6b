"""Backbones and adapters that are small enough for tests, in memory and on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from transformers import LevitConfig, LevitModel, ViTConfig, ViTImageProcessorPil, ViTModel

from smat_peft import SMATConfig
from smat_peft.assets import DEMO_BACKBONE
from smat_peft.few_shot import load_backbone

VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
LEVIT: dict[str, Any] = {
    "hidden_sizes": [8, 8, 8],
    "num_attention_heads": [2, 2, 2],
    "depths": [1, 1, 1],
    "key_dim": [4, 4, 4],
    "image_size": 32,
}


def make_vit(seed: int = 0, **changes: Any) -> ViTModel:
    """A fresh ViT, `[N, 3, 16, 16]` -> `[N, 5, 16]`; the same weights for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViTModel(ViTConfig(**VIT | changes), add_pooling_layer=False).eval()


def make_levit() -> LevitModel:
    """A LeViT, `[N, 3, 32, 32]`, which keeps its attention biases as it has looked them up."""
    model = LevitModel(LevitConfig(**LEVIT)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)  # its own are so small that attention would not matter
    return model


def save_vit(folder: Path) -> None:
    """This ViT and its image processor, as `save_pretrained` leaves them."""
    make_vit().save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)


def save_demo_adapter(folder: Path) -> None:
    """Two random experts for the demo's backbone, whose delta is as small as training leaves it."""
    adapter = get_peft_model(load_backbone(DEMO_BACKBONE), SMATConfig(num_experts=2, init_weights=False))
    for name, parameter in adapter.named_parameters():
        if ".smat_delta." in name:
            parameter.data.mul_(0.1)
    adapter.save_pretrained(folder, save_embedding_layers=False)
