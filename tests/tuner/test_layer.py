"""Calls of a layer that are cut off or overlap, merging piece by piece, and changes of type."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from smat_peft import SMATConfig
from smat_peft.errors import ConfigurationError
from smat_peft.tuner.adapters import smat_layers
from tests.tuner.backbones import BACKBONES, task_images


class Owner(nn.Module):
    """A parameter of its own beside a child, and a pause in the middle of a call."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.linear = nn.Linear(4, 4)
        self.pause: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.pause is not None:
            self.pause()
        return self.linear(x) * self.scale


def adapted(**changes: Any) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(Owner(), SMATConfig(**{"num_experts": 2, "init_weights": False} | changes)).eval()


X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def interrupt() -> None:
    raise KeyboardInterrupt


@torch.no_grad()
def test_a_call_that_the_user_interrupts_leaves_nothing_behind() -> None:
    model = adapted()
    expected = model(X)
    model.get_base_model().pause = interrupt
    with pytest.raises(KeyboardInterrupt):
        model(X)
    model.get_base_model().pause = None
    for layer in smat_layers(model):
        layer.smat_delta["default"].update({name: p * 2 for name, p in layer.smat_delta["default"].items()})
    doubled = model(X)
    assert not torch.allclose(doubled, expected, atol=1e-3)
    model.merge_adapter()
    assert torch.allclose(model(X), doubled, atol=1e-6)


def test_a_second_thread_is_refused_and_the_first_one_goes_on() -> None:
    model = adapted()
    with torch.no_grad():
        expected = model(X)
    inside, refused = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def other() -> None:
        inside.wait(60)
        try:
            model(X)
        except ConfigurationError as error:
            errors.append(error)
        refused.set()

    def pause() -> None:
        if threading.current_thread() is threading.main_thread():
            inside.set()
            refused.wait(60)

    model.get_base_model().pause = pause
    thread = threading.Thread(target=other)
    thread.start()
    with torch.no_grad():
        assert torch.equal(model(X), expected)
    thread.join()
    assert "two threads call this model at once" in str(errors[0])
    with torch.no_grad():
        assert torch.equal(model(X), expected)
    assert not any(isinstance(value, Tensor) for value in vars(model.get_base_model()).values())


@torch.no_grad()
def test_adapters_of_different_parameters_of_a_module_merge_to_their_sum() -> None:
    model = adapted(target_modules=[], target_parameters=["linear.weight"])
    for name, targets in (("second", ["linear.bias"]), ("third", ["linear.weight", "linear.bias"])):
        config = SMATConfig(num_experts=2, init_weights=False, target_modules=[], target_parameters=targets)
        model.add_adapter(name, config)
    model.set_adapter("third")
    with model.task({"linear.weight": torch.randn(4, 4), "linear.bias": torch.randn(4)}):
        linear = model.get_base_model().linear
        added = sum(linear.get_delta_weight(name, "bias") for name in ("second", "third"))
        expected = linear.base_layer.bias + added
        model.merge_adapter(["default", "second", "third"])
        assert torch.allclose(linear.base_layer.bias, expected, atol=1e-6)
        model.unmerge_adapter()


@torch.no_grad()
def test_unmerging_after_a_change_of_type_gives_the_new_type_back() -> None:
    model = adapted()
    own = model.get_base_model().scale.clone()
    model.merge_adapter()
    model.to(torch.bfloat16)
    model.unmerge_adapter()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.get_base_model().scale, own.bfloat16())


@torch.no_grad()
def test_a_model_on_a_task_changes_type_with_it(make_vit: Any) -> None:
    model = get_peft_model(make_vit(), SMATConfig(num_experts=2, init_weights=False)).eval()
    images, labels = task_images(0)
    model.adapt(images, labels)
    expected = model.features(images)
    torch.testing.assert_close(model.double().features(images.double()).float(), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_what_an_adapter_adds_is_the_same_while_it_is_merged() -> None:
    model = adapted()
    linear = model.get_base_model().linear
    for weights in (torch.tensor([0.9, 0.1]), {}, None):
        with nullcontext() if weights is None else model.task(weights):
            alone = linear.get_delta_weight("default")
            assert bool(alone.any()) == (weights != {})
            model.merge_adapter()
            torch.testing.assert_close(linear.get_delta_weight("default"), alone)
            model.unmerge_adapter()


@torch.no_grad()
def test_a_call_without_adapters_unmerges_the_model_and_peft_is_told_so(make_vit: Any) -> None:
    model = get_peft_model(make_vit(), SMATConfig(num_experts=2, init_weights=False)).eval()
    model.merge_adapter()
    assert model.get_model_status().merged_adapters == ["default"]
    with model.disable_adapter():
        model(task_images(0)[0])
    assert model.get_model_status().merged_adapters == []


@torch.no_grad()
def test_features_are_taken_with_all_active_adapters_where_they_agree_on_which(make_vit: Any) -> None:
    model = get_peft_model(make_vit(), SMATConfig(num_experts=2, init_weights=False, feature="cls")).eval()
    for name, feature in (("second", "cls"), ("third", "mean")):
        model.add_adapter(name, SMATConfig(num_experts=2, init_weights=False, feature=feature))
    images, _ = task_images(0)
    model.base_model.set_adapter(["default", "second"])
    torch.testing.assert_close(model.features(images), model(images).last_hidden_state[:, 0])
    model.base_model.set_adapter(["default", "third"])
    with pytest.raises(ConfigurationError, match="different features, cls and mean"):
        model.features(images)


@torch.no_grad()
def test_convolutions_may_change_their_memory_format() -> None:
    backbone = BACKBONES["resnet"]
    model, (images, labels) = backbone.adapted(), task_images(0)
    model.adapt(images, labels)
    expected = model.features(images)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model.features(images), expected)
    model.adapt(images, labels)
    torch.testing.assert_close(model.features(images), expected)


@pytest.mark.parametrize("end", ["unload", "merge_and_unload", "adapt"])
@torch.no_grad()
def test_what_follows_an_interrupted_call_works_with_the_backbones_own_weights(end: str) -> None:
    model = adapted(sparsity_pattern="dense", feature="output")
    plain, own = model.get_base_model(), model.get_base_model().scale.clone()
    merged = copy.deepcopy(model).merge_and_unload()(X)
    model.get_base_model().pause = interrupt
    with model.task({"scale": torch.zeros(4)}), pytest.raises(KeyboardInterrupt):
        model(X)
    model.get_base_model().pause = None
    if end == "adapt":
        model.adapt(X, torch.tensor([0, 1]))  # an even mix: it has no router
        assert torch.equal(model(X), merged)
        return
    found = getattr(model, end)()
    assert "scale" not in vars(plain)
    assert torch.equal(found.scale, own) == (end == "unload")
    if end == "merge_and_unload":
        assert torch.equal(found(X), merged)


def test_an_adapter_that_is_unloaded_is_forgotten() -> None:
    model = adapted()
    gates = [weakref.ref(parameter) for name, parameter in model.named_parameters() if "smat_gates" in name]
    assert gates
    model.merge_and_unload()
    gc.collect()
    assert not any(gate() is not None for gate in gates)


@pytest.mark.filterwarnings("ignore:All adapters are already merged")
@pytest.mark.parametrize("act", ["adapt", "merge"])
def test_what_is_made_in_inference_mode_can_be_trained_later(act: str) -> None:
    model = adapted(sparsity_pattern="dense", feature="output")
    with torch.inference_mode():
        model.adapt(X, torch.tensor([0, 1])) if act == "adapt" else model.merge_adapter()
    plain = model.merge_and_unload()
    plain.requires_grad_(True)
    plain(X).sum().backward()
    assert plain.scale.grad is not None


@torch.no_grad()
def test_a_safe_merge_that_fails_has_changed_nothing() -> None:
    model = adapted()
    expected, own = model(X), model.get_base_model().scale.clone()
    broken = model.get_base_model().linear.smat_delta["default"]["weight"]
    first = broken[0, 0].item()
    broken[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_and_unload(safe_merge=True)
    broken[0, 0] = first
    assert torch.equal(model.get_base_model().scale, own)
    assert torch.equal(model(X), expected)


def test_weights_that_are_offloaded_are_one_clear_error() -> None:
    model = adapted()
    cpu_offload(model.get_base_model())
    with pytest.raises(ConfigurationError, match="has no values: it was offloaded"), torch.no_grad():
        model(X)


@torch.no_grad()
def test_a_sequential_calls_its_router_and_what_is_beside_it_without_effect() -> None:
    class Scaled(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(3, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * self.scale

    images = torch.randn(6, 3, 8, 8)
    expected = (plain := Scaled())(images)
    model = get_peft_model(plain, SMATConfig(num_experts=2, feature_dim=4)).eval()
    assert torch.allclose(model(images), expected)
    model.adapt(images, torch.arange(6) % 2)
    assert torch.allclose(model.features(images), expected)
