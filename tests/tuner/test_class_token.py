"""A feature that reads the class token alone costs a last block for that token alone, and is the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smat_peft.tuner.class_token import BLOCKS
from smat_peft.tuner.features import extract_features
from tests.tuner.backbones import BACKBONES, Backbone, assert_same

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
WITH_CLASS_TOKEN = {
    name: backbone
    for name, backbone in BACKBONES.items()
    if name != "timm" and getattr(getattr(backbone.base(), "config", None), "model_type", "") in BLOCKS
}


@pytest.fixture(params=WITH_CLASS_TOKEN.values(), ids=WITH_CLASS_TOKEN.keys())
def backbone(request: pytest.FixtureRequest) -> Any:
    return request.param


def linear_inputs(model: nn.Module, images: Tensor) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []
    handles = [
        module.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    extract_features(model, images, "cls")
    for handle in handles:
        handle.remove()
    return seen


def hidden(model: nn.Module) -> Tensor:
    takes = {} if "dinov3" in model.config.model_type else {"interpolate_pos_encoding": True}
    return model(IMAGES, **takes).last_hidden_state


def test_every_kind_of_block_is_among_the_backbones() -> None:
    types = {backbone.base().config.model_type for backbone in WITH_CLASS_TOKEN.values()}
    assert {BLOCKS[name] for name in types} == set(BLOCKS.values())


def test_features_and_gradients_are_those_of_the_whole_block(backbone: Backbone) -> None:
    model = backbone.base()
    parameters = [parameter.requires_grad_() for parameter in model.parameters()]
    found = extract_features(model, IMAGES, "cls")
    expected = hidden(model)[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))  # squares of a LayerNorm's are 1
    gradients = (torch.autograd.grad(f, parameters, direction, allow_unused=True) for f in (found, expected))
    largest = 0.0
    for ours, theirs in zip(*gradients, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
            largest = max(largest, float(theirs.abs().max()))
    assert largest > 0.1


def test_the_last_block_s_mlp_sees_one_token(backbone: Backbone) -> None:
    seen = [shape for shape in linear_inputs(backbone.base(), IMAGES) if len(shape) == 3]  # a pooler's is [N, D]
    single = [shape for shape in seen if shape[1] == 1]
    assert len(single) >= 3  # the projection of what was attended, and the MLP's
    assert single == seen[-len(single) :]


def test_nothing_of_it_stays_with_the_model(backbone: Backbone) -> None:
    model = backbone.base()
    expected = hidden(model)
    extract_features(model, IMAGES, "cls")
    with pytest.raises((RuntimeError, ValueError)):
        extract_features(model, IMAGES[:, :2], "cls")
    assert_same(hidden(model), expected)


def test_a_checkpointed_block_is_left_whole(make_vit: Any) -> None:
    model = make_vit()
    model.activation_checkpointing_enable()
    model.train()
    features = extract_features(model, IMAGES[..., :16, :16], "cls")
    features.sum().backward()  # recomputes the block after the call
    assert all(shape[1] > 1 for shape in linear_inputs(model, IMAGES[..., :16, :16]))
