"""Which parameters are adapted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from smat_peft import SMATConfig
from tests.tuner.backbones import TRANSFORMER, Plain

LAYERS = "vit.layers"


def classifier() -> ViTForImageClassification:
    return ViTForImageClassification(ViTConfig(**TRANSFORMER, intermediate_size=32, num_labels=4)).eval()


def adapted(base: nn.Module, **settings: Any) -> set[str]:
    """Names of the parameters that a configuration adapts."""
    model = get_peft_model(base, SMATConfig(num_experts=2, **settings))
    return set(model.interpolate(torch.tensor([0.5, 0.5])))


def parameters(pattern: str) -> set[str]:
    """Names of the classifier's parameters that a regular expression matches."""
    return {name for name, _ in classifier().named_parameters() if re.fullmatch(pattern, name)}


def test_without_targets_everything_below_the_head_is_adapted() -> None:
    assert adapted(classifier()) == parameters(r"vit\..*")


def test_a_head_is_left_alone_by_its_name_where_nothing_else_tells_it() -> None:
    model = nn.Sequential()
    model.body, model.fc = nn.Linear(4, 3), nn.Linear(3, 2)
    assert adapted(model) == {"body.weight", "body.bias"}


def test_a_pooler_is_adapted_where_it_is_the_feature() -> None:
    base = classifier()
    base.vit.pooler = nn.Linear(16, 16)
    assert "vit.pooler.weight" not in adapted(base)
    base = classifier()
    base.vit.pooler = nn.Linear(16, 16)
    assert "vit.pooler.weight" in adapted(base, feature="pooler")


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"target_modules": ["q_proj"]}, rf"{LAYERS}\..*\.q_proj\..*"),
        ({"target_modules": ["q_proj", "classifier"]}, rf"{LAYERS}\..*\.q_proj\..*|classifier\..*"),
        ({"target_modules": r".*\.layers\.0\..*k_proj"}, rf"{LAYERS}\.0\..*\.k_proj\..*"),
        ({"target_modules": ["projection"]}, r"vit\.embeddings\.patch_embeddings\.projection\..*"),
        ({"target_modules": ["embeddings"]}, r"vit\.embeddings\.(cls_token|position_embeddings)"),
        ({"target_modules": ["q_proj"], "exclude_modules": r".*\.0\..*"}, rf"{LAYERS}\.1\..*\.q_proj\..*"),
        ({"target_modules": ["q_proj"], "layers_to_transform": [0]}, rf"{LAYERS}\.0\..*\.q_proj\..*"),
        ({"exclude_modules": ["q_proj", "layernorm"]}, r"vit\.(?!layernorm|.*q_proj).*"),
        ({"exclude_modules": ["embeddings", "layers.1"]}, r"vit\.(layers\.0|layernorm)\..*"),
        ({"exclude_modules": r"vit\.layers.*"}, r"vit\.(embeddings|layernorm)\..*"),
        ({"layers_to_transform": 0}, rf"{LAYERS}\.0\..*"),
        ({"layers_to_transform": [0, 1]}, rf"{LAYERS}\..*"),
        ({"layers_to_transform": 1, "layers_pattern": "layers"}, rf"{LAYERS}\.1\..*"),
    ],
    ids=str,
)
def test_targets_choose_the_parameters(settings: dict[str, Any], pattern: str) -> None:
    assert parameters(pattern)
    assert adapted(classifier(), **settings) == parameters(pattern)


def test_all_linear_means_the_linear_layers() -> None:
    chosen = adapted(classifier(), target_modules="all-linear")
    assert chosen >= parameters(r".*(q_proj|k_proj|v_proj|o_proj|fc1|fc2)\..*")
    assert not chosen & parameters(r".*(embeddings|layernorm).*")


@pytest.mark.filterwarnings("ignore:weight of a Linear is the parameter of another module")
def test_all_linear_chooses_the_same_for_a_second_adapter() -> None:
    model = get_peft_model(Plain(), SMATConfig(target_modules="all-linear"))
    first = set(model.interpolate(torch.ones(8)))
    model.add_adapter("other", SMATConfig(target_modules="all-linear"))
    model.set_adapter("other")
    assert set(model.interpolate(torch.ones(8))) == first


@pytest.mark.parametrize("settings", [{}, {"layers_to_transform": [1]}, {"exclude_modules": ["q_proj"]}], ids=str)
def test_a_saved_adapter_chooses_the_same_again(settings: dict[str, Any], tmp_path: Path) -> None:
    model = get_peft_model(classifier(), SMATConfig(num_experts=2, **settings))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(classifier(), tmp_path)
    weights = torch.tensor([0.5, 0.5])
    assert loaded.interpolate(weights).keys() == model.interpolate(weights).keys()


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["nothing"]},
        {"target_modules": "nothing"},
        {"target_parameters": ["nothing"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [9]},
        {"layers_to_transform": [9]},
        {"exclude_modules": ".*"},
    ],
    ids=str,
)
def test_targets_that_match_nothing_are_one_error_before_anything_has_changed(settings: dict[str, Any]) -> None:
    base = classifier()
    before = {name: (type(module), list(module._forward_hooks)) for name, module in base.named_modules()}
    with pytest.raises(ValueError, match=r"target_modules|Target modules|excluded modules"):
        get_peft_model(base, SMATConfig(**settings))
    assert {name: (type(module), list(module._forward_hooks)) for name, module in base.named_modules()} == before
    assert all(p.requires_grad for p in base.parameters())
