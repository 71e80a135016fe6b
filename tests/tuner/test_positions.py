"""The reference's class token: position embeddings interpolated by its scale factor, wherever the backbone runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import ViTModel

from smat_peft import SMATModel
from smat_peft.errors import ConfigurationError
from smat_peft.few_shot import Adaptation, adapt_to_support
from smat_peft.few_shot.adaptation import task_features
from smat_peft.tuner.features import extract_features
from smat_peft.tuner.positions import positions_by_scale_factor
from tests.tuner.backbones import BACKBONES, assert_same, task_images

LARGE = torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))


def with_positions_for(model: ViTModel, height: int, width: int) -> ViTModel:
    """The model with position embeddings that fit images of this size in patches, so that nothing is interpolated."""
    embeddings: Any = model.embeddings
    positions = embeddings.position_embeddings
    side = int((positions.shape[1] - 1) ** 0.5)
    grid = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    factors = [(height + 0.1) / side, (width + 0.1) / side]  # METHOD 10
    grid = F.interpolate(grid, scale_factor=factors, mode="bicubic", recompute_scale_factor=False)
    positions = torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, height * width, -1)], 1)
    embeddings.position_embeddings = torch.nn.Parameter(positions)
    embeddings.interpolate_pos_encoding = lambda *_: positions
    return model


@torch.no_grad()
def test_position_embeddings_are_interpolated_by_the_reference_s_factor(make_vit: Callable[..., ViTModel]) -> None:
    found = extract_features(make_vit(), LARGE, "reference_cls")
    expected = with_positions_for(make_vit(), 3, 5)(LARGE, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, extract_features(make_vit(), LARGE, "cls"), atol=1e-4)


@torch.no_grad()
def test_at_the_size_of_pre_training_it_is_the_class_token(make_vit: Callable[..., ViTModel]) -> None:
    images = LARGE[..., :16, :16]
    assert_same(extract_features(make_vit(), images, "reference_cls"), extract_features(make_vit(), images, "cls"))


@torch.no_grad()
def test_the_owner_of_the_embeddings_is_found_among_modules_like_it(
    make_vit: Callable[..., ViTModel],
) -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position_embeddings = torch.nn.Parameter(torch.zeros(1))
            self.vit = make_vit()

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.vit(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]

    wrapper = Wrapper()
    with positions_by_scale_factor(wrapper):
        found = wrapper(LARGE)
    torch.testing.assert_close(found, extract_features(make_vit(), LARGE, "reference_cls"))


@torch.no_grad()
def test_the_backbone_is_left_as_it_was(make_vit: Callable[..., ViTModel]) -> None:
    model = make_vit()
    expected = model(LARGE, interpolate_pos_encoding=True).last_hidden_state
    extract_features(model, LARGE, "reference_cls")
    with pytest.raises(ValueError, match="channel dimension"):
        extract_features(model, LARGE[:, :1], "reference_cls")
    assert_same(model(LARGE, interpolate_pos_encoding=True).last_hidden_state, expected)


def test_a_backbone_without_them_is_one_clear_error() -> None:
    with pytest.raises(ConfigurationError, match="reference_cls' is for transformers' ViT"):
        extract_features(BACKBONES["resnet"].base(), LARGE, "reference_cls")


@pytest.mark.parametrize("kind", ["prototype", "full"])
def test_an_adapter_with_this_feature_classifies_and_is_fine_tuned_by_it(kind: str) -> None:
    model = BACKBONES["vit"].adapted(init_weights=True, feature="reference_cls")
    assert isinstance(model.base_model, SMATModel)
    assert not any("pooler" in name for name, _ in model.named_parameters() if "smat_" in name)
    base = BACKBONES["vit"].base()
    with torch.no_grad():
        expected = extract_features(base, LARGE, "reference_cls")
    support, labels = task_images(0)
    task = adapt_to_support(model, support, labels, adaptation=Adaptation(kind, steps=1, learning_rate=1e-12))
    torch.testing.assert_close(task_features(model, task, LARGE), expected, rtol=1e-4, atol=1e-5)
