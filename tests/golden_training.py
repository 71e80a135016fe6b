"""The golden numbers of training: its arguments, and how losses and gradients are compared with them."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from smat_peft.meta_tuning.arguments import MetaTuningArguments
from tests.golden_state import RUN, SETTINGS, distance, numbers, section

TERMS = ["query_ce", "query_kd", "sparsity", "lagrangian", "router_z"]
Gradients = dict[str, dict[str, Tensor]]  # by kind and golden name


def golden_arguments(**changes: Any) -> MetaTuningArguments:
    """The arguments of the golden run, of one episode an update."""
    settings: dict[str, Any] = {
        "episodes_per_step": 1,
        "delta_lr": SETTINGS["lr_delta"],
        "gate_lr": SETTINGS["lr_gates"],
        "multiplier_lr": SETTINGS["lr_multiplier"],
        "router_lr": SETTINGS["lr_router"],
        "max_gate_grad_norm": SETTINGS["clip_gates"],
        "warmup_steps": 0,
        "lr_decay_steps": 10**12,
        "max_steps": 2,
        "temperature_episodes": SETTINGS["temperature_episodes"],
    }
    return MetaTuningArguments(**settings | changes)


def assert_golden_losses(terms: dict[str, Tensor], multipliers: Tensor) -> None:
    """The terms of episode 0, and the multipliers with which they were taken."""
    golden = RUN["log"][0]
    assert terms.keys() == golden["losses"].keys()
    for name, value in golden["losses"].items():
        assert terms[name].item() == pytest.approx(value, rel=1e-5), name
    assert multipliers.tolist() == pytest.approx(golden["multipliers"], rel=1e-6)


def assert_golden_gradients(ours: Gradients, term: str) -> None:
    """The gradients of one term of episode 0, which leaves those of other kinds at 0."""
    golden = section(numbers("train_ep0"), f"grad/{term}")
    assert golden
    for path, tensor in golden.items():
        kind, _, name = path.partition("/")
        assert_golden_gradient(ours[kind][name], tensor, path)
    kinds = {path.partition("/")[0] for path in golden}
    assert {kind for kind, found in ours.items() if any(g.abs().max() > 0 for g in found.values())} == kinds


def assert_golden_gradient(ours: Tensor, golden: Tensor, name: str) -> None:
    """One gradient."""
    if name.endswith("k_proj.bias"):  # attention does not depend on it: its gradient is 0 but for rounding
        assert max(ours.abs().max(), golden.abs().max()) < 1e-6, name
    else:
        assert distance(ours, golden) < 2e-5, name


def assert_golden_update(number: int, ours: Gradients, multipliers: Tensor, momenta: dict[str, Tensor]) -> None:
    """The adapter, the multipliers and the delta's momenta after so many updates."""
    golden = numbers(f"update{number}")
    for kind, parameters in ours.items():
        assert parameters.keys() == section(golden, kind).keys()
        for name, tensor in section(golden, kind).items():
            assert distance(parameters[name], tensor) < 1e-5, f"{kind}/{name}"
    assert distance(multipliers, golden["multipliers"]) < 1e-5
    momentum = section(golden, "momentum")
    assert bool(momentum) == (number == 2)
    assert not momentum or momenta.keys() == momentum.keys()
    for name, tensor in momentum.items():
        if not name.endswith("k_proj.bias"):
            assert distance(momenta[name], tensor) < 2e-5, name
