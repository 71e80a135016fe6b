"""What may happen to an adapter from its making to its end, on every backbone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn

from smat_peft.errors import ConfigurationError
from smat_peft.experts.gates import EVAL_TEMPERATURE, TRAIN_TEMPERATURE, gate_values
from smat_peft.tuner.adapters import find_router, smat_layers
from tests.tuner.backbones import BACKBONES, EXPERTS, Backbone, assert_same, checkpoint_gradients, outputs, task_images

IMAGES = task_images(7)[0]
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return BACKBONES[request.param]


def base_parameters(model: PeftModel) -> dict[str, Tensor]:
    """The base model's own parameters by their own names."""
    named = model.get_base_model().named_parameters()
    return {name.replace(".base_layer", ""): p for name, p in named if ".smat_" not in f".{name}"}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def loss_of(model: nn.Module) -> Tensor:
    result = outputs(model, IMAGES)
    return (result * torch.randn(result.shape, generator=torch.Generator().manual_seed(3))).sum()


def gradients(model: PeftModel, run: Callable[[Tensor], None]) -> dict[str, Tensor]:
    """The gradients, of delta, gates and expert weights, that `run` leaves."""
    weights = WEIGHTS.clone().requires_grad_()
    model.zero_grad()
    run(weights)
    trained = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(".smat_" in name for name in trained)
    assert len(trained) == 2 * len(model.interpolate(WEIGHTS))
    return copies(trained if weights.grad is None else trained | {"expert weights": weights.grad})


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


# ----- making one -----


@torch.no_grad()
def test_a_fresh_adapter_changes_nothing(backbone: Backbone) -> None:
    fresh = backbone.adapted(init_weights=True)
    expected = outputs(backbone.base(), IMAGES)
    assert_same(outputs(fresh, IMAGES), expected)
    fresh.adapt(*task_images(1))
    assert_same(outputs(fresh, IMAGES), expected)


def test_every_parameter_is_adapted_and_keeps_its_name(backbone: Backbone) -> None:
    model = backbone.adapted()
    own = copies(dict(backbone.base().named_parameters()))
    assert_equal(base_parameters(model), own)
    adapted = {name for name in own if not name.startswith(backbone.left_alone or "-")}
    assert model.interpolate(WEIGHTS).keys() == adapted
    assert set(model.unadapted_parameters()) >= set(own) - adapted  # a tied parameter by each of its names


def test_delta_and_gates_are_trainable_and_nothing_else(backbone: Backbone) -> None:
    trainable = [name for name, p in backbone.adapted().named_parameters() if p.requires_grad]
    assert trainable
    assert all(".smat_delta." in name or ".smat_gates." in name for name in trainable)


def test_a_router_is_trained_once_it_is_thawed_also_where_the_adapter_is_chosen_again() -> None:
    model = BACKBONES["vit"].adapted()
    router = find_router(model)
    assert router is not None
    for is_thawed in (False, True):
        model.set_adapter("default")
        assert all(p.requires_grad == is_thawed for p in router.smat_router.parameters())
        router.thaw("default")


# ----- tasks -----


@torch.no_grad()
def test_each_task_has_outputs_of_its_own_until_it_is_left(backbone: Backbone) -> None:
    model = backbone.adapted()
    even = outputs(model, IMAGES)
    on_task = []
    for seed in (1, 2, 1):
        model.adapt(*task_images(seed))
        on_task.append(outputs(model, IMAGES))
    model.reset_task()
    assert_same(on_task[0], on_task[2])
    assert (on_task[0] - on_task[1]).abs().max() > 1e-4
    assert (on_task[0] - even).abs().max() > 1e-4
    assert_same(outputs(model, IMAGES), even)


@torch.no_grad()
def test_an_empty_task_is_the_backbone_and_an_even_one_is_no_task(backbone: Backbone) -> None:
    model = backbone.adapted()
    with model.task({}):
        assert_same(outputs(model, IMAGES), outputs(backbone.base(), IMAGES))
    without = outputs(model, IMAGES)
    with model.task(torch.full((EXPERTS,), 1 / EXPERTS)):
        torch.testing.assert_close(outputs(model, IMAGES), without)


@torch.no_grad()
def test_a_task_inside_another_gives_way_to_it_again(backbone: Backbone) -> None:
    model = backbone.adapted()
    with model.task(WEIGHTS):
        before = outputs(model, IMAGES)
        with model.task(WEIGHTS.flip(0)):
            assert not torch.allclose(outputs(model, IMAGES), before, atol=1e-4)
        assert_same(outputs(model, IMAGES), before)
        with pytest.raises((RuntimeError, ValueError)), model.task(WEIGHTS.flip(0)):
            outputs(model, IMAGES[:, :2])
        assert_same(outputs(model, IMAGES), before)


@torch.no_grad()
def test_the_task_of_a_mode_does_not_depend_on_the_mode_and_leaves_it(backbone: Backbone) -> None:
    model = backbone.adapted()
    expected = model.adapt(*task_images(1))
    on_task = outputs(model, IMAGES)
    model.reset_task()
    routed = model.train().adapt(*task_images(1))
    assert all(module.training for module in model.modules())
    assert_same(routed.weights, expected.weights)
    assert_same(outputs(model.eval(), IMAGES), on_task)


@torch.no_grad()
def test_renumbering_the_classes_and_reordering_the_support_change_nothing(backbone: Backbone) -> None:
    model = backbone.adapted()
    images, labels = task_images(1)
    expected = model.adapt(images, labels)
    features = model.features(IMAGES)
    order = torch.tensor([4, 0, 5, 3, 1, 2])
    for other in (model.adapt(images, torch.tensor([2, 0, 1])[labels]), model.adapt(images[order], labels[order])):
        torch.testing.assert_close(other.weights, expected.weights, rtol=0, atol=1e-6)
        torch.testing.assert_close(model.features(IMAGES), features, rtol=0, atol=1e-5)


@pytest.mark.parametrize("gate_eval", ["reference", "train"])
@pytest.mark.parametrize("training", [False, True])
def test_task_weights_are_the_formula_with_the_gates_of_the_mode(
    backbone: Backbone, training: bool, gate_eval: str
) -> None:
    model = backbone.adapted(gate_eval=gate_eval).train(training)
    temperature = TRAIN_TEMPERATURE if training or gate_eval == "train" else EVAL_TEMPERATURE
    interpolated, own = model.interpolate(WEIGHTS), base_parameters(model)
    for layer in smat_layers(model):
        for name, delta in layer.smat_delta["default"].items():
            gates = gate_values(layer.smat_gates["default"][name], temperature)
            mixed = sum(weight * gate for weight, gate in zip(WEIGHTS, gates, strict=True))
            full_name = layer.full_name(name)
            torch.testing.assert_close(interpolated[full_name], own[full_name] + mixed * delta)


@pytest.mark.parametrize("granularity", ["element", "structured"])
@pytest.mark.parametrize("training", [False, True])
def test_sparsity_and_expected_l0_are_shares_of_the_adapted_scalars(
    backbone: Backbone, training: bool, granularity: str
) -> None:
    model = backbone.adapted(gate_granularity=granularity, gate_init_std=2.0).train(training)
    logits = torch.cat(
        [
            layer.smat_gates["default"][name].expand(EXPERTS, *delta.shape).reshape(EXPERTS, -1)
            for layer in smat_layers(model)
            for name, delta in layer.smat_delta["default"].items()
        ],
        dim=1,
    )
    closed = gate_values(logits, TRAIN_TEMPERATURE if training else EVAL_TEMPERATURE) == 0
    torch.testing.assert_close(model.sparsity(), closed.float().mean(1))
    assert (model.sparsity() > 0).all()
    expected = torch.sigmoid(logits + 2 / 3 * torch.tensor(11.0).log()).mean(1)
    torch.testing.assert_close(model.expected_l0(), expected)
    assert model.expected_l0().requires_grad


def test_a_task_needs_exactly_one_active_adapter(backbone: Backbone) -> None:
    model = backbone.adapted()
    model.add_adapter("other", backbone.config())
    model.base_model.set_adapter(["default", "other"])
    for use in (
        lambda: model.adapt(*task_images(1)),
        lambda: model.task(WEIGHTS).__enter__(),
        lambda: model.interpolate(WEIGHTS),
    ):
        with pytest.raises(ConfigurationError, match=r"exactly one active adapter, got \['default', 'other'\]"):
            use()


def test_task_weights_of_unknown_parameters_are_refused_and_named(backbone: Backbone) -> None:
    model = backbone.adapted()
    name, tensor = next(iter(model.interpolate(WEIGHTS).items()))
    with pytest.raises(ConfigurationError, match=r"not adapted: \['base_model\.model\."):
        model.task({name: tensor, f"base_model.model.{name}": tensor}).__enter__()
    assert_same(outputs(model, IMAGES), outputs(backbone.adapted(), IMAGES))


@torch.no_grad()
def test_a_backbone_in_half_precision_keeps_it_and_its_task_is_the_one_of_full_precision(backbone: Backbone) -> None:
    model = backbone.adapted()
    expected = model.adapt(*task_images(1)).weights
    on_task = outputs(model, IMAGES)
    half = backbone.adapted(dtype=torch.bfloat16)
    assert {p.dtype for name, p in half.named_parameters() if ".smat_" in name} == {torch.float32}
    torch.testing.assert_close(half.adapt(*task_images(1)).weights, expected, rtol=0, atol=0.1)
    assert {weight.dtype for weight in half.interpolate(WEIGHTS).values()} == {torch.bfloat16}
    images = IMAGES.to(torch.bfloat16)
    result = outputs(half, images)
    assert result.dtype == torch.bfloat16
    assert (result.float() - on_task).norm() < 0.1 * on_task.norm()
    merged = half.merge_and_unload()
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(outputs(merged, images), result)


# ----- training -----


def test_training_moves_the_adapter_and_no_weight_of_the_base(backbone: Backbone) -> None:
    model = backbone.adapted().train()
    before = copies(dict(model.named_parameters()))
    find_router(model).thaw("default")  # type: ignore[union-attr]
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    images, labels = task_images(1)
    for seed in range(2):
        optimiser.zero_grad()
        with torch.no_grad(), model.task({}):
            frozen = model.features(images)
        routed = model.route(model.prototypes(frozen, labels), uniform=torch.full((EXPERTS,), 0.4 + 0.1 * seed))
        with model.task(routed.weights):
            loss = loss_of(model)
        loss.backward()
        optimiser.step()
    model.adapt(images, labels)
    model.reset_task()

    assert_equal(base_parameters(model), dict(backbone.base().named_parameters()))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    for kind in ("delta", "gates", "router"):
        assert any(f".smat_{kind}." in name for name in moved), kind


def test_backward_after_the_block_equals_backward_inside_it(backbone: Backbone) -> None:
    model = backbone.adapted().train()

    def inside(weights: Tensor) -> None:
        with model.task(weights):
            loss_of(model).backward()

    assert_equal(gradients(model, backward_after_the_block(model)), gradients(model, inside))


def backward_after_the_block(model: PeftModel, *, another_task: bool = False) -> Callable[[Tensor], None]:
    def run(weights: Tensor) -> None:
        with model.task(weights):
            loss = loss_of(model)
        if another_task:
            with model.task(WEIGHTS.flip(0)):
                loss.backward()
        else:
            loss.backward()

    return run


def without_a_task(model: PeftModel) -> Callable[[Tensor], None]:
    return lambda _: loss_of(model).backward()


def within_the_block(model: PeftModel) -> Callable[[Tensor], None]:
    def run(weights: Tensor) -> None:
        with model.task(weights):
            loss_of(model).backward()

    return run


RUNS: dict[str, Callable[[PeftModel], Callable[[Tensor], None]]] = {
    "without a task": without_a_task,
    "backward within the block": within_the_block,
    "backward after the block": backward_after_the_block,
    "backward in another task": lambda model: backward_after_the_block(model, another_task=True),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(backbone: Backbone, reentrant: bool, run: str) -> None:
    if reentrant not in backbone.checkpoints:
        pytest.skip("this backbone cannot be checkpointed so")
    model = backbone.adapted().train()
    expected = gradients(model, RUNS[run](model))
    checkpoint_gradients(model.get_base_model(), reentrant)
    recomputed = count_calls(model)
    assert_close(gradients(model, RUNS[run](model)), expected)
    assert max(recomputed.values()) > 1


def count_calls(model: PeftModel) -> dict[str, int]:
    """How often each adapted layer has been called from now on."""
    calls: dict[str, int] = {}

    def count(layer: nn.Module, _inputs: Any) -> None:
        calls[layer.path] = calls.get(layer.path, 0) + 1  # type: ignore[index, arg-type]

    for layer in smat_layers(model):
        layer.register_forward_pre_hook(count)
    return calls


def test_reentrant_checkpointing_reaches_the_router_too(backbone: Backbone) -> None:
    if True not in backbone.checkpoints:
        pytest.skip("this backbone cannot be checkpointed so")
    model = backbone.adapted().train()
    find_router(model).thaw("default")  # type: ignore[union-attr]
    images, labels = task_images(1)
    with torch.no_grad(), model.task({}):
        prototypes = model.prototypes(model.features(images), labels)

    def trained_gradients() -> dict[str, Tensor]:
        model.zero_grad()
        with model.task(model.route(prototypes, uniform=torch.full((EXPERTS,), 0.4)).weights):
            loss = loss_of(model)
        loss.backward()
        return copies({name: p.grad for name, p in model.named_parameters() if p.grad is not None})

    expected = trained_gradients()
    assert any("smat_router" in name for name in expected)
    checkpoint_gradients(model.get_base_model(), True)
    assert_close(trained_gradients(), expected)


# ----- merging, unloading, disabling -----


@pytest.fixture(params=["on a task", "with an even mix"])
def on_task(request: pytest.FixtureRequest) -> Iterator[bool]:
    return request.param == "on a task"


@torch.no_grad()
def test_merging_and_unloading_gives_the_plain_model_with_the_same_outputs(backbone: Backbone, on_task: bool) -> None:
    model, plain = backbone.adapted(), backbone.base()
    if on_task:
        model.adapt(*task_images(1))
    expected = outputs(model, IMAGES)
    merged = model.train().merge_and_unload().eval()
    assert_plain(merged, plain)
    torch.testing.assert_close(outputs(merged, IMAGES), expected, rtol=0, atol=1e-5)
    assert (expected - outputs(plain, IMAGES)).abs().max() > 1e-3


@torch.no_grad()
def test_unloading_gives_the_backbone_back_to_the_bit(backbone: Backbone, on_task: bool) -> None:
    model, plain = backbone.adapted(), backbone.base()
    if on_task:
        model.adapt(*task_images(1))
    unloaded = model.unload()
    assert_plain(unloaded, plain)
    assert_equal(unloaded.state_dict(), plain.state_dict())
    assert_same(outputs(unloaded, IMAGES), outputs(plain, IMAGES))


def assert_plain(model: nn.Module, plain: nn.Module) -> None:
    assert {name: type(m) for name, m in model.named_modules()} == {n: type(m) for n, m in plain.named_modules()}
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("safe_merge", [False, True])
def test_merging_and_unmerging_restores_every_weight_to_the_bit(
    backbone: Backbone, on_task: bool, safe_merge: bool
) -> None:
    model = backbone.adapted()
    if on_task:
        model.adapt(*task_images(1))
    expected = outputs(model, IMAGES)
    model.merge_adapter(safe_merge=safe_merge)
    torch.testing.assert_close(outputs(model, IMAGES), expected, rtol=0, atol=1e-5)
    model.reset_task()  # a task's end must not change what is taken off again
    model.unmerge_adapter()
    assert_equal(base_parameters(model), dict(backbone.base().named_parameters()))
    if on_task:
        model.adapt(*task_images(1))
    assert_same(outputs(model, IMAGES), expected)


@torch.no_grad()
def test_a_merged_model_takes_no_task(backbone: Backbone) -> None:
    model = backbone.adapted()
    model.merge_adapter()
    weights = torch.full((backbone.config().num_experts,), 0.5)
    for take in (lambda: model.adapt(*task_images(1)), lambda: model.interpolate(weights)):
        with pytest.raises(ConfigurationError, match=r"unmerge_adapter\(\)"):
            take()


@torch.no_grad()
def test_a_delta_that_is_not_finite_is_not_merged(backbone: Backbone) -> None:
    model = backbone.adapted()
    next(iter(smat_layers(model)[-1].smat_delta["default"].values())).fill_(float("nan"))
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_adapter(safe_merge=True)


@torch.no_grad()
def test_a_disabled_adapter_changes_nothing_on_a_task_or_off_it(backbone: Backbone, on_task: bool) -> None:
    model = backbone.adapted()
    if on_task:
        model.adapt(*task_images(1))
    expected = outputs(model, IMAGES)
    with model.disable_adapter():
        assert_same(outputs(model, IMAGES), outputs(backbone.base(), IMAGES))
    assert_same(outputs(model, IMAGES), expected)


@torch.no_grad()
def test_a_call_that_fails_leaves_the_weights_of_the_base_in_place(backbone: Backbone, on_task: bool) -> None:
    model = backbone.adapted()
    if on_task:
        model.adapt(*task_images(1))
    with pytest.raises((RuntimeError, ValueError)):
        outputs(model, IMAGES[:, :2])  # a channel is missing
    with model.disable_adapter():
        assert_same(outputs(model, IMAGES), outputs(backbone.base(), IMAGES))


# ----- saving and loading -----


@pytest.mark.parametrize("adapter_name", ["default", "other"])
@torch.no_grad()
def test_a_loaded_adapter_equals_the_saved_one_to_the_bit(
    backbone: Backbone, tmp_path: Path, adapter_name: str, on_task: bool
) -> None:
    model = backbone.adapted()
    find_router(model).router("default").episodes_seen.fill_(9000)  # type: ignore[union-attr]
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(backbone.base(), tmp_path, adapter_name=adapter_name).eval()
    assert find_router(loaded).router(adapter_name).episodes_seen == 9000  # type: ignore[union-attr]
    assert_equal(get_peft_model_state_dict(loaded, adapter_name=adapter_name), get_peft_model_state_dict(model))
    if on_task:
        for each in (model, loaded):
            each.adapt(*task_images(1))
    assert_same(outputs(loaded, IMAGES), outputs(model, IMAGES))
    assert_same(loaded.features(IMAGES), model.features(IMAGES))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deep", "pickle"]
)
@torch.no_grad()
def test_a_copy_is_on_the_same_task_and_leaves_it_alone(backbone: Backbone, copied: Callable[..., PeftModel]) -> None:
    model = backbone.adapted()
    model.adapt(*task_images(1))
    on_task = outputs(model, IMAGES)
    other = copied(model)
    assert_same(outputs(other, IMAGES), on_task)
    other.reset_task()
    assert not torch.allclose(outputs(other, IMAGES), on_task, atol=1e-4)
    assert_same(outputs(model, IMAGES), on_task)


# ----- several adapters -----


@torch.no_grad()
def test_adapters_are_switched_and_deleted_without_touching_each_other(backbone: Backbone) -> None:
    model = backbone.adapted()
    first = adapted_outputs(model)
    model.add_adapter("other", backbone.config())
    assert_same(adapted_outputs(model), first)
    model.set_adapter("other")
    second = adapted_outputs(model)
    assert (second - first).abs().max() > 1e-3
    model.set_adapter("default")
    assert_same(adapted_outputs(model), first)
    model.set_adapter("other")
    assert_same(adapted_outputs(model), second)

    model.delete_adapter("default")
    assert not any("default" in name.split(".") for name in model.state_dict())
    assert model.active_adapter == "other"
    assert_same(adapted_outputs(model), second)


@torch.no_grad()
def test_a_task_is_in_force_while_its_adapter_is_active(backbone: Backbone) -> None:
    model = backbone.adapted()
    model.add_adapter("other", backbone.config())
    model.set_adapter("other")
    without_a_task = outputs(model, IMAGES)
    model.set_adapter("default")
    model.adapt(*task_images(1))
    on_task = outputs(model, IMAGES)
    model.set_adapter("other")
    assert_same(outputs(model, IMAGES), without_a_task)
    model.set_adapter("default")
    assert_same(outputs(model, IMAGES), on_task)
    model.set_adapter("other")
    model.delete_adapter("default")
    assert smat_layers(model)[0].state.task is None


@torch.no_grad()
def test_active_adapters_add_up(backbone: Backbone) -> None:
    model = backbone.adapted()
    model.add_adapter("other", backbone.config())
    own, first, second = base_parameters(model), deltas(model, "default"), deltas(model, "other")
    with model.task({name: own[name] + first[name] + second[name] for name in first}):
        summed = outputs(model, IMAGES)
    model.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(outputs(model, IMAGES), summed, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_task_and_another_active_adapter_add_up_merged_or_not(backbone: Backbone) -> None:
    model = backbone.adapted()
    model.add_adapter("other", backbone.config())
    model.adapt(*task_images(1))
    alone = outputs(model, IMAGES)
    model.base_model.set_adapter(["default", "other"])
    together = outputs(model, IMAGES)
    assert not torch.allclose(together, alone, atol=1e-4)
    model.merge_adapter()
    torch.testing.assert_close(outputs(model, IMAGES), together, rtol=1e-4, atol=1e-5)


def adapted_outputs(model: PeftModel) -> Tensor:
    model.adapt(*task_images(1))
    result = outputs(model, IMAGES)
    model.reset_task()
    return result


def deltas(model: PeftModel, adapter: str) -> dict[str, Tensor]:
    """What an adapter adds to each parameter, by its name."""
    return {
        layer.full_name(name): layer.get_delta_weight(adapter, name)
        for layer in smat_layers(model)
        for name in layer.smat_delta[adapter]
    }
