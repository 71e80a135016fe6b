"""Which feature of a backbone stands for an image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Dinov2Backbone,
    Dinov2Config,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from smat_peft.errors import ConfigurationError
from smat_peft.tuner.features import backbone_of, extract_features, feature_kind, feature_width
from tests.tuner.backbones import BACKBONES, TRANSFORMER, assert_same, task_images

IMAGES = task_images(7)[0]


def vit(**settings: Any) -> ViTModel:
    torch.manual_seed(0)
    return ViTModel(ViTConfig(**TRANSFORMER, intermediate_size=32), **settings).eval()


def resnet() -> ResNetModel:
    torch.manual_seed(0)
    return ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")).eval()


def hidden(model: ViTModel) -> Tensor:
    return model(IMAGES).last_hidden_state


def hooks(model: nn.Module) -> int:
    """How many forward hooks there are; transformers leaves some of its own."""
    return sum(len(module._forward_hooks) for module in model.modules())


@torch.no_grad()
def test_each_kind_of_feature_is_its_part_of_the_output() -> None:
    model = vit()
    output = model(IMAGES)
    assert_same(extract_features(model, IMAGES, "cls"), output.last_hidden_state[:, 0])
    assert_same(extract_features(model, IMAGES, "mean"), output.last_hidden_state.mean(1))
    assert_same(extract_features(model, IMAGES, "pooler"), output.pooler_output)
    assert_same(extract_features(model, IMAGES), output.last_hidden_state[:, 0])


@torch.no_grad()
def test_a_modules_path_means_its_output_averaged_over_positions() -> None:
    model = vit()
    tokens = model(IMAGES, output_hidden_states=True).hidden_states[1]
    before = hooks(model)
    torch.testing.assert_close(extract_features(model, IMAGES, "layers.0"), tokens.mean(1))
    maps = model.embeddings.patch_embeddings.projection(IMAGES)
    path = "embeddings.patch_embeddings.projection"
    torch.testing.assert_close(extract_features(model, IMAGES, path), maps.mean((2, 3)))
    assert hooks(model) == before


@torch.no_grad()
def test_a_head_does_not_change_the_feature() -> None:
    model = ViTForImageClassification(ViTConfig(**TRANSFORMER, intermediate_size=32)).eval()
    assert backbone_of(model) is model.vit
    assert_same(extract_features(model, IMAGES), hidden(model.vit)[:, 0])


@torch.no_grad()
def test_the_pooled_maps_of_a_convolutional_network_are_vectors() -> None:
    model = resnet()
    assert_same(extract_features(model, IMAGES), model(IMAGES).pooler_output.flatten(1))
    assert extract_features(model, IMAGES, "mean").shape == (len(IMAGES), 16)


@torch.no_grad()
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Flatten(), (6, 768)),
        (nn.Conv2d(3, 5, 4), (6, 5)),
        (nn.Sequential(nn.Flatten(2), nn.Linear(256, 7)), (6, 7)),
    ],
)
def test_the_output_of_any_other_module_is_the_feature(module: nn.Module, shape: tuple[int, int]) -> None:
    assert extract_features(module, IMAGES).shape == shape


@torch.no_grad()
@pytest.mark.parametrize("size", [8, 24])
@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_images_of_another_size_than_the_pre_trainings_are_taken(name: str, size: int) -> None:
    images = torch.randn(2, 3, size, size)
    base, model = BACKBONES[name].base(), BACKBONES[name].adapted(init_weights=True)
    expected = extract_features(base, images)
    assert torch.isfinite(expected).all()
    assert_same(model.features(images), expected)
    model.adapt(*task_images(1))
    assert_same(model.features(images), expected)


@torch.no_grad()
def test_position_embeddings_are_interpolated_as_the_model_does_it() -> None:
    model, images = vit(), torch.randn(2, 3, 24, 24)
    expected = model(images, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    assert_same(extract_features(model, images), expected)


@torch.no_grad()
def test_images_are_cast_to_the_models_precision() -> None:
    assert extract_features(vit().bfloat16(), IMAGES).dtype == torch.bfloat16


def test_a_missing_pooler_is_one_clear_error() -> None:
    with pytest.raises(ConfigurationError, match="no pooler output; try feature='mean'"):
        extract_features(vit(add_pooling_layer=False), IMAGES, "pooler")


@pytest.mark.parametrize("feature", ["cls", "mean"])
def test_a_model_that_gives_maps_alone_is_one_clear_error(feature: str) -> None:
    model = Dinov2Backbone(Dinov2Config(**TRANSFORMER)).eval()
    with pytest.raises(ConfigurationError, match=r"BackboneOutput has no last_hidden_state .* AutoModel"):
        extract_features(model, IMAGES, feature)
    assert extract_features(model, IMAGES, "layernorm").shape == (len(IMAGES), 16)


def test_an_unknown_module_is_one_clear_error() -> None:
    with pytest.raises(ConfigurationError, match=r"feature='layers\.9' is neither .* nor a module's path"):
        extract_features(vit(), IMAGES, "layers.9")


def test_a_module_that_is_not_used_is_one_clear_error() -> None:
    model = vit()
    model.spare = nn.Linear(2, 2)
    with pytest.raises(ConfigurationError, match=r"feature='spare': that module is not used"):
        extract_features(model, IMAGES, "spare")
    assert not model.spare._forward_hooks


def test_a_failing_forward_pass_leaves_no_hook() -> None:
    model = vit()
    before = hooks(model)
    with pytest.raises(RuntimeError):
        extract_features(model, IMAGES[:, :, :3], "layers.0")
    assert hooks(model) == before


def test_the_width_is_read_from_the_models_config() -> None:
    assert feature_width(vit()) == 16
    assert feature_width(resnet()) == 16
    assert feature_width(nn.Linear(2, 2)) is None


def test_the_kind_follows_the_type_of_model() -> None:
    assert feature_kind(vit(), "auto") == "cls"
    assert feature_kind(resnet(), "auto") == "pooler"
    assert feature_kind(nn.Linear(2, 2), "auto") == "output"
    assert feature_kind(vit(), "mean") == "mean"


@torch.no_grad()
def test_the_feature_of_the_configuration_is_what_an_adapter_gives() -> None:
    model = BACKBONES["vit"].adapted(init_weights=True, feature="mean")
    assert_same(model.features(IMAGES), hidden(BACKBONES["vit"].base()).mean(1))


def test_without_a_known_width_experts_are_mixed_evenly() -> None:
    model = BACKBONES["plain"].adapted(feature_dim=None)
    assert model.adapt(*task_images(1)).weights.tolist() == pytest.approx([1 / 3] * 3)
    assert not any("smatrouter" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_each_backbone_has_a_feature_of_a_known_width(name: str) -> None:
    backbone, images = BACKBONES[name], task_images(1)[0]
    model = backbone.adapted()
    assert feature_kind(model.get_base_model(), "auto") == backbone.feature
    assert model.peft_config["default"].feature_dim == backbone.width
    assert model.features(images).shape == (len(images), backbone.width)
    assert extract_features(backbone.base(), images, backbone.feature).shape == (len(images), backbone.width)
