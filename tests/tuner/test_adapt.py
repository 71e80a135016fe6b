"""adapt for one task after another: what it writes to, and evaluated gates that are kept."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from smat_peft import SMATConfig
from smat_peft.errors import ConfigurationError, DataError
from smat_peft.tuner import tasks
from smat_peft.tuner.adapters import adapter_gates, smat_layers
from tests.tuner.backbones import assert_same

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["element", "structured"])
def model(request: pytest.FixtureRequest, make_vit: Any) -> PeftModel:
    torch.manual_seed(0)
    config = SMATConfig(num_experts=3, init_weights=False, gate_granularity=request.param)
    return get_peft_model(make_vit(), config).eval()


def support(seed: int) -> tuple[Tensor, Tensor]:
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(seed)), torch.arange(6) % 3


def task_weights(model: PeftModel) -> dict[str, Tensor]:
    return dict(smat_layers(model)[0].state.task.weights)


def test_task_after_task_is_written_to_the_same_tensors(model: PeftModel) -> None:
    model.adapt(*support(1))
    addresses = {name: weight.data_ptr() for name, weight in task_weights(model).items()}
    first = copy.deepcopy(task_weights(model))
    model.adapt(*support(2))
    assert {name: weight.data_ptr() for name, weight in task_weights(model).items()} == addresses
    assert any(not torch.allclose(weight, first[name], atol=1e-4) for name, weight in task_weights(model).items())
    model.adapt(*support(1))
    for name, weight in task_weights(model).items():
        assert_same(weight, first[name])


def test_an_adapter_without_a_router_is_mixed_evenly_without_a_look_at_the_support(
    make_vit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SMATConfig(num_experts=2, init_weights=False, sparsity_pattern="dense")
    model = get_peft_model(make_vit(), config).eval()
    monkeypatch.setattr(tasks, "features", None)  # to call it would fail
    assert model.adapt(*support(1)).weights.tolist() == [0.5, 0.5]
    expected = model.interpolate(torch.tensor([0.5, 0.5]))
    for name, weight in task_weights(model).items():
        assert_same(weight, expected[name])


def test_weights_that_a_user_gave_are_not_written_to(model: PeftModel) -> None:
    given = {name: weight.detach() for name, weight in model.interpolate(torch.tensor([0.2, 0.5, 0.3])).items()}
    before = copy.deepcopy(given)
    with model.task(given):
        model.adapt(*support(1))
    assert all(torch.equal(given[name], weight) for name, weight in before.items())


def test_tensors_of_inference_mode_are_not_written_to_outside_it(model: PeftModel) -> None:
    with torch.inference_mode():
        model.adapt(*support(1))
    model.adapt(*support(2))
    expected = model.features(IMAGES)
    model.reset_task()
    model.adapt(*support(2))
    assert_same(model.features(IMAGES), expected)


def test_a_copy_does_not_write_to_the_original_s_task(model: PeftModel) -> None:
    model.adapt(*support(1))
    expected = model.features(IMAGES)
    copy.deepcopy(model).adapt(*support(2))
    assert_same(model.features(IMAGES), expected)


def kept(model: PeftModel) -> list[Tensor]:
    return [
        values[-1]
        for layer in smat_layers(model)
        for gates in layer.kept_gates.values()
        for values in gates._kept.values()
    ]


def test_nothing_is_kept_unless_asked_for(model: PeftModel) -> None:
    for adapt in (model.adapt, partial(tasks.adapt, model)):
        adapt(*support(1))
        assert kept(model) == []


def test_kept_gates_take_two_bytes_each_and_change_little(model: PeftModel) -> None:
    model.adapt(*support(1))
    exact = copy.deepcopy(task_weights(model))
    model.adapt(*support(1), keep_gates=True)
    deltas = {
        layer.full_name(name): layer.smat_delta["default"][name] for layer, name, _ in adapter_gates(model, "default")
    }
    for name, weight in task_weights(model).items():
        assert ((weight - exact[name]).abs() <= 2.5e-4 * deltas[name].abs() + 1e-7).all(), name
    sizes = sum(values.numel() * values.element_size() for values in kept(model))
    assert sizes == 2 * sum(gates.numel() for _, _, gates in adapter_gates(model, "default"))


def test_kept_gates_serve_further_tasks_until_a_call_without_them(model: PeftModel) -> None:
    model.adapt(*support(1), keep_gates=True)
    before = kept(model)
    model.adapt(*support(2), keep_gates=True)
    assert [values.data_ptr() for values in kept(model)] == [values.data_ptr() for values in before]
    model.adapt(*support(2))
    assert kept(model) == []


def in_place(gates: Tensor) -> None:
    gates.add_(1.0)


def by_other_memory(gates: Tensor) -> None:
    gates.data = gates.data + 1.0


def by_a_fused_optimiser(gates: Tensor) -> None:
    gates.grad = torch.full_like(gates, -1.0)
    torch.optim.SGD([gates], lr=1.0, fused=True).step()


@pytest.mark.parametrize("change", [in_place, by_other_memory, by_a_fused_optimiser])
@torch.no_grad()
def test_kept_gates_are_evaluated_again_when_the_gates_change(model: PeftModel, change: Any) -> None:
    model.adapt(*support(1), keep_gates=True)
    for _, _, gates in adapter_gates(model, "default"):
        change(gates)
    model.adapt(*support(1), keep_gates=True)
    found = model.features(IMAGES)
    model.adapt(*support(1))
    torch.testing.assert_close(found, model.features(IMAGES), rtol=0, atol=1e-3)


def test_a_copy_carries_nothing_kept_and_adapts_alike(model: PeftModel) -> None:
    model.adapt(*support(1), keep_gates=True)
    twin = copy.deepcopy(model)
    assert not any(kept._kept for layer in smat_layers(twin) for kept in layer.kept_gates.values())
    twin.adapt(*support(1), keep_gates=True)
    for name, weight in task_weights(model).items():
        assert torch.equal(task_weights(twin)[name], weight)


def test_nothing_is_kept_of_a_deleted_adapter(model: PeftModel) -> None:
    model.adapt(*support(1), keep_gates=True)
    model.add_adapter("other", model.peft_config["default"])
    model.set_adapter("other")
    model.delete_adapter("default")
    assert kept(model) == []


def test_a_class_without_an_image_is_refused(model: PeftModel) -> None:
    with pytest.raises(DataError, match="no image has label 1"):
        model.adapt(support(1)[0], torch.tensor([0, 2, 0, 2, 0, 2]))


def test_weights_of_another_number_of_experts_are_refused(model: PeftModel) -> None:
    with pytest.raises(ConfigurationError, match="mixes 3 experts, got 4 weights"), model.task(torch.full((4,), 0.25)):
        pass


def test_a_merged_model_without_a_router_takes_no_task(make_vit: Any) -> None:
    model = get_peft_model(make_vit(), SMATConfig(num_experts=1, init_weights=False, sparsity_pattern="dense")).eval()
    model.adapt(*support(1))
    model.merge_adapter()
    with pytest.raises(ConfigurationError, match=r"unmerge_adapter\(\)"):
        model.adapt(*support(1))


def test_gates_of_inference_mode_are_evaluated_each_time(make_vit: Any) -> None:
    with torch.inference_mode():
        model = get_peft_model(make_vit(), SMATConfig(num_experts=2, init_weights=False)).eval()
        model.adapt(*support(1), keep_gates=True)
        kept = task_weights(model)["layernorm.weight"].clone()
        for _, _, gates in adapter_gates(model, "default"):
            gates.fill_(-3.0)
        model.adapt(*support(1), keep_gates=True)
        assert not torch.equal(task_weights(model)["layernorm.weight"], kept)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (torch.zeros(5, dtype=torch.int64), r"labels of 6 images must be a tensor int64 \[6\], got torch.int64 \[5\]"),
        (torch.zeros(6), "got torch.float32"),
        (torch.zeros(6, 1, dtype=torch.int64), r"got torch.int64 \[6, 1\]"),
        ([0, 0, 0, 1, 1, 1], "got a list"),
        (torch.tensor([-1, 0, 0, 0, 1, 1]), "labels must be 0 to C-1, got -1"),
    ],
)
def test_labels_that_are_none_are_refused(make_vit: Any, labels: Any, reason: str) -> None:
    model = get_peft_model(make_vit(), SMATConfig(num_experts=2))
    with pytest.raises(DataError, match=reason):
        model.adapt(torch.randn(6, 3, 16, 16), labels)
