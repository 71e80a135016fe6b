"""SMATConfig: what it refuses, and that it travels whole."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftConfig, get_peft_model
from transformers import ViTConfig, ViTForImageClassification

from smat_peft import SMATConfig
from smat_peft.errors import ConfigurationError
from smat_peft.experts.router import Router
from smat_peft.tuner.adapters import find_router
from tests.tuner.backbones import BACKBONES

CHANGED: dict[str, Any] = {
    "num_experts": 3,
    "target_sparsity": 0.5,
    "sparsity_pattern": "random",
    "gate_granularity": "structured",
    "gate_init_std": 0.25,
    "gate_eval": "train",
    "router_pooling": "first",
    "router_heads": 2,
    "router_mlp_ratio": 1.5,
    "router_skill_tokens": 0,
    "router_spectral_norm": False,
    "router_temperature": (4.0, 1.0),
    "router_temperature_episodes": 7,
    "feature": "mean",
    "feature_dim": 16,
    "target_modules": {"q_proj", "k_proj"},
    "exclude_modules": {"pooler"},
    "layers_to_transform": [0, 1],
    "layers_pattern": ["layers"],
    "modules_to_save": ["classifier"],
    "init_weights": False,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_experts", 0),
        ("num_experts", 2.5),
        ("num_experts", "8"),
        ("num_experts", True),
        ("target_sparsity", None),
        ("router_temperature", 3.0),
        ("router_temperature", (1.0,)),
        ("feature_dim", "wide"),
        ("target_sparsity", 1.0),
        ("target_sparsity", -0.1),
        ("target_sparsity", float("nan")),
        ("sparsity_pattern", "checkerboard"),
        ("gate_granularity", "row"),
        ("gate_init_std", -1.0),
        ("gate_eval", "eval"),
        ("router_pooling", "max"),
        ("router_heads", 0),
        ("router_mlp_ratio", 0.0),
        ("router_skill_tokens", -1),
        ("router_temperature", (0.5, 5.0)),
        ("router_temperature", (5.0, 0.0)),
        ("router_temperature_episodes", 0),
        ("feature_dim", 0),
    ],
)
def test_a_field_out_of_range_is_named_with_what_would_be_right(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"SMATConfig: {name} must be .*, got "):
        SMATConfig(**{name: value})


@pytest.mark.parametrize("name", ["layers_to_transform", "layers_pattern"])
def test_layers_are_not_chosen_twice(name: str) -> None:
    value: Any = [0] if name == "layers_to_transform" else "layers"
    with pytest.raises(ConfigurationError, match=rf"`{name}` needs `target_modules` to be a list"):
        SMATConfig(target_modules=".*", **{name: value})


def test_every_field_survives_saving_and_loading(tmp_path: Path) -> None:
    config = SMATConfig(**CHANGED)
    defaults = SMATConfig()
    assert all(getattr(config, name) != getattr(defaults, name) for name in CHANGED)
    config.save_pretrained(tmp_path)
    for loaded in (SMATConfig.from_pretrained(tmp_path), PeftConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, SMATConfig)
        for name, value in CHANGED.items():
            assert getattr(loaded, name) == value, name
            assert type(getattr(loaded, name)) is type(value), name


def test_saving_does_not_change_the_configuration(tmp_path: Path) -> None:
    config = SMATConfig(**CHANGED)
    config.save_pretrained(tmp_path)
    assert config == SMATConfig(**CHANGED)


def test_a_saved_value_out_of_range_is_refused_on_loading(tmp_path: Path) -> None:
    SMATConfig(num_experts=3).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"num_experts": 3', '"num_experts": 0'))
    with pytest.raises(ConfigurationError, match="num_experts"):
        SMATConfig.from_pretrained(tmp_path)


def test_a_configuration_is_pickled_whole() -> None:
    config = SMATConfig(**CHANGED)
    assert pickle.loads(pickle.dumps(config)) == config


def test_target_lists_become_sets_and_expressions_stay() -> None:
    assert SMATConfig(target_modules=["a", "b"]).target_modules == {"a", "b"}
    assert SMATConfig(target_modules="all-linear").target_modules == "all-linear"


def test_there_is_a_router_only_where_it_can_choose() -> None:
    assert SMATConfig(feature_dim=16).has_router
    assert not SMATConfig().has_router
    assert not SMATConfig(feature_dim=16, sparsity_pattern="dense").has_router


def test_the_settings_of_the_router_reach_it() -> None:
    settings = {name: CHANGED[name] for name in CHANGED if name.startswith("router_")}
    router = find_router(BACKBONES["vit"].adapted(**settings)).router("default")  # type: ignore[union-attr]
    assert router is not None
    assert router.pooling == "first"
    assert router.heads == 2
    assert router.fc1_weight.shape == (24, 16)
    assert router.skill_tokens.shape == (1, 0, 16)
    assert not router.spectral_norm
    assert router.temperature_range == (4.0, 1.0)
    assert router.temperature_episodes == 7


def test_the_router_s_own_defaults_are_those_of_the_configuration() -> None:
    own = {name: parameter.default for name, parameter in inspect.signature(Router).parameters.items()}
    config = SMATConfig()
    for name in (
        "heads",
        "mlp_ratio",
        "skill_tokens",
        "spectral_norm",
        "pooling",
        "temperature",
        "temperature_episodes",
    ):
        assert own[name] == getattr(config, f"router_{name}"), name


def test_numbers_of_numpy_can_be_saved(tmp_path):
    config = SMATConfig(num_experts=np.int64(2), target_sparsity=np.float32(0.5), feature_dim=np.int32(8))
    config.save_pretrained(tmp_path)
    assert SMATConfig.from_pretrained(tmp_path).num_experts == 2


def test_a_configuration_that_was_completed_for_one_model_is_refused_for_another(make_vit):
    config = SMATConfig(num_experts=2)
    get_peft_model(make_vit(), config)
    wider = ViTForImageClassification(ViTConfig(**(make_vit().config.to_dict() | {"hidden_size": 64})))
    with pytest.raises(ConfigurationError, match="this SMATConfig was completed for another model"):
        get_peft_model(wider, config)
    get_peft_model(make_vit(), config)


def test_features_of_another_width_than_the_router_s_are_one_clear_error(make_vit):
    model = get_peft_model(make_vit(), SMATConfig(num_experts=2, feature_dim=48))
    with pytest.raises(ConfigurationError, match=r"features are 16 wide, .*feature_dim=16"):
        model.adapt(torch.rand(4, 3, 16, 16), torch.tensor([0, 0, 1, 1]))
