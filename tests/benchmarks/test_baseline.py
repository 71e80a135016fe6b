"""The baseline computes the golden numbers of METHOD 2 to 8, as the product does."""

from typing import Any

import pytest
import torch
from torch import Tensor

from baseline import Baseline
from smat_peft.experts.gates import GATE_LIMIT
from tests.golden_state import (
    RUN,
    SETTINGS,
    distance,
    episode,
    golden_backbone,
    golden_router_name,
    numbers,
    section,
    uniform,
)
from tests.golden_training import (
    TERMS,
    Gradients,
    assert_golden_gradients,
    assert_golden_losses,
    assert_golden_update,
    golden_arguments,
)


def golden_baseline(pooling: str = "first", **changes: Any) -> Baseline:
    state = numbers("state0")
    baseline = Baseline(
        golden_backbone(),
        golden_arguments(**changes),
        num_experts=RUN["config"]["num_experts"],
        target_sparsity=SETTINGS["target_sparsity"],
        pooling=pooling,
    )
    with torch.no_grad():
        for kind, parameters in adapter_parameters(baseline).items():
            golden = section(state, kind)
            assert parameters.keys() == golden.keys()
            for name, tensor in golden.items():
                parameters[name].copy_(tensor)
        baseline.multipliers.copy_(torch.tensor(SETTINGS["multiplier0"]))
        baseline.router.episodes_seen.fill_(SETTINGS["episodes_seen"])
    return baseline


def experts_first(gates: Tensor) -> Tensor:
    """Gates `[*shape, M]` in the golden files' layout `[M, *shape]`; a view."""
    return gates.movedim(-1, 0)


def adapter_parameters(baseline: Baseline) -> dict[str, dict[str, Tensor]]:
    """The adapter's tensors by the golden files' names and in their layout; writing to them writes to the baseline."""
    router = dict(baseline.router.named_parameters()) | dict(baseline.router.named_buffers())
    router.pop("episodes_seen")
    return {
        "delta": {name: delta.detach() for name, delta in baseline.delta.items()},
        "gates": {name: experts_first(logits.detach()) for name, logits in baseline.gate_logits.items()},
        "router": {golden_router_name(name): tensor.detach() for name, tensor in router.items()},
    }


def gradients(baseline: Baseline) -> Gradients:
    """All gradients by kind and golden name, in the golden files' layout."""
    learned = {
        "delta": baseline.delta,
        "gates": baseline.gate_logits,
        "router": {golden_router_name(name): p for name, p in baseline.router.named_parameters()},
        "multipliers": {"": baseline.multipliers},
    }
    return {
        kind: {
            name: experts_first(p.grad) if kind == "gates" else p.grad
            for name, p in parameters.items()
            if p.grad is not None
        }
        for kind, parameters in learned.items()
    }


def test_the_baselines_loss_terms_are_the_golden_ones() -> None:
    baseline = golden_baseline()
    terms = baseline.episode(episode(0), uniform(0))
    assert_golden_losses(terms, baseline.multipliers)


@pytest.mark.parametrize("term", TERMS)
def test_the_gradient_of_each_of_the_baselines_loss_terms_is_the_golden_one(term: str) -> None:
    baseline = golden_baseline()
    baseline.episode(episode(0), uniform(0))[term].backward()
    assert_golden_gradients(gradients(baseline), term)


@pytest.mark.parametrize("updates", [1, 2])
def test_the_baselines_state_after_each_update_is_the_golden_one(updates: int) -> None:
    baseline = golden_baseline(episodes_per_step=4)
    for update in range(updates):
        indices = range(4 * update, 4 * update + 4)
        baseline.update([episode(i) for i in indices], [uniform(i) for i in indices])
    momenta = {name: baseline.optimiser.state[p]["momentum_buffer"] for name, p in baseline.delta.items()}
    assert_golden_update(updates, adapter_parameters(baseline), baseline.multipliers, momenta)


def test_the_baselines_gates_stay_within_their_limits() -> None:
    baseline = golden_baseline(gate_lr=1e6)
    baseline.update([episode(0)], [uniform(0)])
    largest = max(logits.abs().max().item() for logits in baseline.gate_logits.values())
    assert largest == pytest.approx(GATE_LIMIT)


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("index", [0, 1])
def test_the_baselines_evaluation_is_the_golden_one(pooling: str, index: int) -> None:
    logits = golden_baseline(pooling).evaluate(episode(index))
    assert distance(logits, numbers(f"eval_ep{index}")[f"{pooling}/query_logits"]) < 1e-5


def test_a_training_episode_makes_four_passes_over_the_support_and_four_over_the_query() -> None:
    baseline, task = golden_baseline(), episode(0)
    passes: list[Tensor] = []
    baseline.backbone.register_forward_pre_hook(lambda _module, inputs: passes.append(inputs[0]))
    baseline.episode(task, uniform(0))
    assert [images is task.support for images in passes].count(True) == 4
    assert [images is task.query for images in passes].count(True) == 4


def test_autocast_changes_the_type_of_the_passes_and_nothing_else() -> None:
    plain, half = golden_baseline(), golden_baseline()
    half.autocast = torch.bfloat16
    expected, terms = plain.episode(episode(0), uniform(0)), half.episode(episode(0), uniform(0))
    assert terms["query_ce"].item() != expected["query_ce"].item()
    assert terms["query_ce"].item() == pytest.approx(expected["query_ce"].item(), rel=3e-2)
    torch.stack(list(terms.values())).sum().backward()
    assert {tensor.dtype for of_kind in gradients(half).values() for tensor in of_kind.values()} == {torch.float32}
