"""Training equals the golden numbers of METHOD 7 and 8, through MetaLearner and MetaTrainer's own update."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smat_peft.meta_tuning.arguments import MetaTuningArguments
from smat_peft.meta_tuning.learner import MetaLearner
from smat_peft.meta_tuning.trainer import MetaTrainer
from smat_peft.tuner.tasks import interpolate
from tests.golden_state import (
    RUN,
    SETTINGS,
    adapter_parameters,
    distance,
    episode,
    golden_model,
    numbers,
    section,
    uniform,
)

pytestmark = pytest.mark.usefixtures("engine")


def golden_arguments(**changes: Any) -> MetaTuningArguments:
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


def golden_learner(**changes: Any) -> MetaLearner:
    learner = MetaLearner(golden_model("first"), golden_arguments(**changes))
    with torch.no_grad():
        learner.multipliers.copy_(torch.tensor(SETTINGS["multiplier0"]))
    return learner


def gradients(learner: MetaLearner) -> dict[str, dict[str, Tensor]]:
    adapter = adapter_parameters(learner.model)
    adapter["router"] = {k: v for k, v in adapter["router"].items() if v.requires_grad}
    return {
        kind: {name: p.grad for name, p in tensors.items() if p.grad is not None} for kind, tensors in adapter.items()
    } | {"multipliers": {"": learner.multipliers.grad} if learner.multipliers.grad is not None else {}}


def assert_equal_gradients(ours: Tensor, golden: Tensor, name: str) -> None:
    if name.endswith("k_proj.bias"):  # attention does not depend on it: its gradient is 0 but for rounding
        assert max(ours.abs().max(), golden.abs().max()) < 1e-6, name
    else:
        assert distance(ours, golden) < 2e-5, name


def test_every_loss_term_of_an_episode_is_the_golden_one() -> None:
    learner = golden_learner()
    terms = learner([episode(0)], uniform(0)[None])
    golden = RUN["log"][0]
    assert terms.keys() == golden["losses"].keys()
    for name, value in golden["losses"].items():
        assert terms[name].item() == pytest.approx(value, rel=1e-5), name
    assert learner.multipliers.tolist() == pytest.approx(golden["multipliers"], rel=1e-6)
    assert float(learner.statistics["accuracy"]) == pytest.approx(golden["query_accuracy"])


@pytest.mark.parametrize("term", ["query_ce", "query_kd", "sparsity", "lagrangian", "router_z"])
def test_the_gradient_of_each_loss_term_is_the_golden_one(term: str) -> None:
    learner = golden_learner()
    learner([episode(0)], uniform(0)[None])[term].backward()
    ours, golden = gradients(learner), section(numbers("train_ep0"), f"grad/{term}")
    assert golden
    for name, tensor in golden.items():
        kind, _, parameter = name.partition("/")
        assert_equal_gradients(ours[kind][parameter], tensor, name)
    expected_kinds = {name.partition("/")[0] for name in golden}
    assert {kind for kind, found in ours.items() if any(g.abs().max() > 0 for g in found.values())} == expected_kinds


def test_inner_and_teacher_steps_are_the_golden_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = numbers("train_ep0")
    learner = golden_learner()
    caught: dict[str, Any] = {}
    inner_step, adapted_teacher = MetaLearner.inner_step, MetaLearner.adapted_teacher

    def catch_inner(self: MetaLearner, weights: Any, prototypes: Tensor, *rest: Any) -> Any:
        caught["prototypes"] = prototypes
        caught["weights"] = weights
        caught["adapted_weights"], caught["adapted_prototypes"] = inner_step(self, weights, prototypes, *rest)
        return caught["adapted_weights"], caught["adapted_prototypes"]

    def catch_teacher(self: MetaLearner, loss: Tensor, weights: Any, prototypes: Tensor, query: Tensor) -> Tensor:
        tensors = [*weights.values(), prototypes]
        caught["teacher_grad"] = torch.autograd.grad(loss, tensors, retain_graph=True)
        caught["teacher_query_logits"] = adapted_teacher(self, loss, weights, prototypes, query)
        return caught["teacher_query_logits"]

    monkeypatch.setattr(MetaLearner, "inner_step", catch_inner)
    monkeypatch.setattr(MetaLearner, "adapted_teacher", catch_teacher)
    result = _advance_and_run(learner)

    for name in ("prototypes", "adapted_prototypes", "teacher_query_logits"):
        assert distance(caught[name], golden[name]) < 1e-5, name
    assert distance(result.logits, golden["query_logits"]) < 1e-5
    assert distance(result.routed.weights, golden["weights"]) < 1e-5
    names = list(caught["weights"])
    rate = learner.arguments.inner_lr
    for position, name in enumerate(names):
        assert distance(caught["adapted_weights"][name], golden[f"adapted_weights/{name}"]) < 1e-5, name
        inner = (caught["weights"][name].detach() - caught["adapted_weights"][name].detach()).double() / rate
        # the step itself is a difference of nearly equal weights: compared at the rounding of those
        error = (inner - golden[f"inner_grad/{name}"]).norm() * rate / caught["weights"][name].norm()
        assert error < 1e-6, name
        assert_equal_gradients(caught["teacher_grad"][position], golden[f"teacher_grad/{name}"], name)
    assert distance(caught["teacher_grad"][-1], golden["teacher_grad/prototypes"]) < 2e-5


def _advance_and_run(learner: MetaLearner) -> Any:
    assert learner.router is not None
    learner.router.advance_spectral_norm()
    probe = learner.probe(episode(0), uniform(0))
    return learner.episode(episode(0), probe, interpolate(learner.model, probe.routed.weights))


def test_episodes_in_one_forward_weigh_as_much_as_one_by_one() -> None:
    together = golden_learner(episodes_per_step=2)
    terms = together([episode(0), episode(1)], torch.stack([uniform(0), uniform(1)]))
    apart = golden_learner(episodes_per_step=2)
    first, second = apart([episode(0)], uniform(0)[None]), apart([episode(1)], uniform(1)[None])
    for name, term in terms.items():
        assert term.item() == pytest.approx((first[name] + second[name]).item(), rel=1e-5), name


@pytest.mark.parametrize("updates", [1, 2])
def test_the_state_after_each_update_is_the_golden_one(updates: int, tmp_path: Path) -> None:
    arguments = golden_arguments(episodes_per_step=4, output_dir=str(tmp_path))
    trainer = MetaTrainer(golden_model("first"), arguments, train=[])
    with torch.no_grad():
        trainer.learner.multipliers.copy_(torch.tensor(SETTINGS["multiplier0"]))
    for update in range(updates):
        indices = range(4 * update, 4 * update + 4)
        trainer.update([episode(i) for i in indices], torch.stack([uniform(i) for i in indices]))
        trainer.step += 1

    golden = numbers(f"update{updates}")
    for kind, parameters in adapter_parameters(trainer.learner.model).items():
        assert parameters.keys() == section(golden, kind).keys()
        for name, tensor in section(golden, kind).items():
            assert distance(parameters[name], tensor) < 1e-5, f"{kind}/{name}"
    assert distance(trainer.learner.multipliers, golden["multipliers"]) < 1e-5
    momentum = section(golden, "momentum")
    for name, parameter in adapter_parameters(trainer.learner.model)["delta"].items():
        if momentum and not name.endswith("k_proj.bias"):
            assert distance(trainer.updates.optimisers[0].state[parameter]["momentum_buffer"], momentum[name]) < 2e-5, (
                name
            )
