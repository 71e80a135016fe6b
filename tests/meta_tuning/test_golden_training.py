"""Training equals the golden numbers of METHOD 7 and 8, through MetaLearner and MetaTrainer's own update."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smat_peft.meta_tuning.learner import MetaLearner
from smat_peft.meta_tuning.trainer import MetaTrainer
from smat_peft.tuner.tasks import interpolate
from tests.golden_state import RUN, SETTINGS, adapter_parameters, distance, episode, golden_model, numbers, uniform
from tests.golden_training import (
    TERMS,
    Gradients,
    assert_golden_gradient,
    assert_golden_gradients,
    assert_golden_losses,
    assert_golden_update,
    golden_arguments,
)

pytestmark = pytest.mark.usefixtures("engine")


def golden_learner(**changes: Any) -> MetaLearner:
    learner = MetaLearner(golden_model("first"), golden_arguments(**changes))
    with torch.no_grad():
        learner.multipliers.copy_(torch.tensor(SETTINGS["multiplier0"]))
    return learner


def gradients(learner: MetaLearner) -> Gradients:
    adapter = adapter_parameters(learner.model)
    adapter["router"] = {k: v for k, v in adapter["router"].items() if v.requires_grad}
    return {
        kind: {name: p.grad for name, p in tensors.items() if p.grad is not None} for kind, tensors in adapter.items()
    } | {"multipliers": {"": learner.multipliers.grad} if learner.multipliers.grad is not None else {}}


def test_every_loss_term_of_an_episode_is_the_golden_one() -> None:
    learner = golden_learner()
    terms = learner([episode(0)], uniform(0)[None])
    assert_golden_losses(terms, learner.multipliers)
    assert float(learner.statistics["accuracy"]) == pytest.approx(RUN["log"][0]["query_accuracy"])


@pytest.mark.parametrize("term", TERMS)
def test_the_gradient_of_each_loss_term_is_the_golden_one(term: str) -> None:
    learner = golden_learner()
    learner([episode(0)], uniform(0)[None])[term].backward()
    assert_golden_gradients(gradients(learner), term)


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
        assert_golden_gradient(caught["teacher_grad"][position], golden[f"teacher_grad/{name}"], name)
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
    adapter, state = adapter_parameters(trainer.learner.model), trainer.updates.optimisers[0].state
    momenta = {name: state[parameter]["momentum_buffer"] for name, parameter in adapter["delta"].items()}
    assert_golden_update(updates, adapter, trainer.learner.multipliers, momenta)
