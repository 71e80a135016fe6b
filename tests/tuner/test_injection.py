"""Which parameters get an adapter, what its tensors are like, and what is left alone."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from smat_peft import SMATConfig
from smat_peft.errors import ConfigurationError
from smat_peft.tuner.adapters import adapter_router, find_router, smat_layers


class Bare(nn.Module):
    """Two parameters of its own beside a layer; as a root, and as a part of another."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.shift = nn.Parameter(torch.zeros(4))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.scale + self.shift


def settings(**changes: Any) -> SMATConfig:
    return SMATConfig(**{"num_experts": 2, "init_weights": False} | changes)


def adapted_names(model: nn.Module, adapter_name: str = "default") -> set[str]:
    having = [layer for layer in smat_layers(model) if adapter_name in layer.smat_delta]
    return {layer.full_name(name) for layer in having for name in layer.smat_delta[adapter_name]}


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        (["scale"], {"scale", "part.scale"}),
        (["part.scale"], {"part.scale"}),
        (["linear.weight", "part.shift"], {"linear.weight", "part.linear.weight", "part.shift"}),
    ],
)
def test_target_parameters_reach_exactly_the_named_ones_of_the_root_too(targets: list[str], adapted: set[str]) -> None:
    base = Bare()
    base.part = Bare()
    before = copy.deepcopy(base).state_dict()
    model = get_peft_model(base, settings(target_modules=[], target_parameters=targets))
    assert adapted_names(model) == adapted
    assert set(model.unadapted_parameters()) == before.keys() - adapted

    merged = model.merge_and_unload().state_dict()
    assert merged.keys() == before.keys()
    assert {name for name in before if not torch.equal(before[name], merged[name])} == adapted


def test_a_second_adapter_targets_parameters_of_layers_that_the_first_one_wrapped() -> None:
    model = get_peft_model(Bare(), settings(target_modules=[], target_parameters=["linear.weight"]))
    model.add_adapter("other", settings(target_modules=[], target_parameters=["linear.weight", "shift"]))
    assert [layer.path for layer in smat_layers(model)] == ["linear", ""]
    x = torch.randn(2, 4)
    model.set_adapter("other")
    model.eval()
    adapted = model(x)
    assert not torch.allclose(adapted, model.get_base_model().linear.base_layer(x))
    model.merge_adapter()
    assert torch.allclose(model(x), adapted, atol=1e-6)


def test_a_new_layer_is_in_the_mode_of_the_module_that_it_adapts() -> None:
    model = get_peft_model(Bare().eval(), settings(target_modules=["linear"]))
    model.add_adapter("other", settings(target_parameters=["scale"], target_modules=[], feature_dim=4))
    assert not any(layer.training for layer in smat_layers(model))
    assert not find_router(model).router("other").training  # type: ignore[union-attr]


def test_a_model_without_a_router_has_no_layer_for_one() -> None:
    model = get_peft_model(Bare(), settings(target_modules=["linear"]))
    assert find_router(model) is None
    assert adapter_router(model) is None
    assert [status.name for status in model.get_layer_status()] == ["model.linear"]


def test_a_model_that_takes_no_images_has_no_router() -> None:
    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    assert find_router(get_peft_model(LlamaModel(config), settings(target_modules=["q_proj"]))) is None


def test_a_second_adapter_leaves_alone_what_it_excludes_and_the_first_adapts() -> None:
    base = nn.Sequential()
    base.part, base.rest = Bare(), Bare()
    model = get_peft_model(base, settings())
    model.add_adapter("other", settings(exclude_modules=["part"]))
    left_alone = adapted_names(model, "default") - adapted_names(model, "other")
    assert left_alone == {"part.scale", "part.shift", "part.linear.weight", "part.linear.bias"}


COMPILING = """
import torch
from peft import get_peft_model
from smat_peft import SMATConfig
from tests.tuner.test_injection import Bare

x = torch.randn(2, 4)
for targets in (["linear.weight"], ["linear.weight", "scale"], ["scale"]):
    config = SMATConfig(num_experts=2, init_weights=False, target_modules=[], target_parameters=targets)
    model = get_peft_model(Bare(), config).eval()
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), model(x)), targets
"""


def test_models_with_other_targets_each_compile_as_one_graph_of_their_own() -> None:
    # In a process of its own: torch cannot compile the checks of shapes that the tests put around functions.
    subprocess.run([sys.executable, "-c", COMPILING], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("autocast", [True, False])
def test_the_router_has_the_type_of_the_adapter_and_routes_in_it(
    make_vit: Callable[..., nn.Module], autocast: bool
) -> None:
    model = get_peft_model(make_vit().to(torch.bfloat16), settings(), autocast_adapter_dtype=autocast)
    router = adapter_router(model)
    assert router is not None
    tensors = [tensor for tensor in router.state_dict().values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32 if autocast else torch.bfloat16}
    router.advance_spectral_norm()
    assert model.route(torch.randn(3, 16)).weights.isfinite().all()


def test_an_adapter_may_have_the_name_of_a_module_only_where_it_is_alone() -> None:
    model = get_peft_model(Bare(), settings(target_modules=["linear"]), adapter_name="linear")
    with pytest.raises(ConfigurationError, match="beside another, an adapter cannot be called 'linear'"):
        model.add_adapter("other", settings(target_modules=["linear"]))
    model = get_peft_model(Bare(), settings(target_modules=[], target_parameters=["shift"], modules_to_save=["linear"]))
    model.add_adapter("other", settings(target_parameters=["scale"], target_modules=[]))


def test_what_is_trained_whole_is_listed_as_unadapted_and_another_adapter_leaves_it_alone(tmp_path: Path) -> None:
    base = nn.Sequential()
    base.part, base.last = Bare(), nn.Linear(4, 4)
    model = get_peft_model(base, settings(target_modules=["linear"], modules_to_save=["last"]))
    assert model.unadapted_parameters()[-2:] == ["last.weight", "last.bias"]
    model.add_adapter("other", settings())
    assert adapted_names(model, "other") == {
        f"part.{name}" for name in ("scale", "shift", "linear.weight", "linear.bias")
    }
    model.save_pretrained(tmp_path)


def test_targets_without_a_parameter_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"target_modules=\{'1'\} .* no parameter"):
        get_peft_model(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), settings(target_modules=["1"]))


def test_a_parameter_of_two_modules_is_warned_of_where_it_is_named() -> None:
    base = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    base[1].weight = base[0].weight
    with pytest.warns(UserWarning, match="weight of a Linear is the parameter of another module"):
        get_peft_model(base, settings(target_modules=["1"]))


def test_complex_weights_are_left_alone_and_whole_numbers_are_quantised() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.complex64)), settings())
    assert adapted_names(model) == {"0.weight", "0.bias"}
    quantised = nn.Linear(4, 4)
    quantised.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigurationError, match="quantised"):
        get_peft_model(nn.Sequential(quantised), settings(target_modules=["0"]))


def test_a_head_is_listed_as_unadapted(make_vit: Callable[..., nn.Module]) -> None:
    base = nn.Sequential()
    base.backbone, base.head = nn.Linear(4, 4), nn.Linear(4, 2)
    model = get_peft_model(base, settings())
    assert model.unadapted_parameters() == ["head.weight", "head.bias"]
    assert get_peft_model(make_vit(), settings()).unadapted_parameters() == []


def test_a_saved_configuration_equals_the_one_in_memory(tmp_path: Path) -> None:
    settings().save_pretrained(tmp_path)
    saved = SMATConfig.from_json_file(tmp_path / "adapter_config.json")
    assert saved == settings().to_dict()
    assert SMATConfig(**saved).router_temperature == (5.0, 0.5)
