"""Calls of a layer that are cut off or overlap, and merging piece by piece."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from smat_peft import SMATConfig
from smat_peft.errors import ConfigurationError
from smat_peft.tuner.adapters import smat_layers


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
