"""What is told of an update's memory: what a pass keeps, and how settings change it."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from smat_peft import MetaTuningArguments, SMATConfig
from smat_peft.meta_tuning.learner import MetaLearner
from smat_peft.meta_tuning.memory import kept_by_image, kept_for_backward, memory_of_update
from smat_peft.meta_tuning.optimisers import ParameterGroups
from smat_peft.meta_tuning.prototype_learner import PrototypeLearner
from smat_peft.tuner.adapters import adapted_size
from tests.faults.small_run import EXPERTS, tiny_vit

IMAGE = torch.zeros(1, 3, 16, 16)
KEPT = 1000


def learner(**changes: Any) -> MetaLearner:
    model = get_peft_model(tiny_vit(), SMATConfig(**EXPERTS))
    return MetaLearner(model, MetaTuningArguments(**changes))


def memory(of: MetaLearner | PrototypeLearner, *, processes: int = 1) -> dict[str, int]:
    return memory_of_update(of, ParameterGroups(of), processes=processes, count=10, kept=KEPT)


def test_a_pass_keeps_its_inputs_once_and_weights_not_at_all() -> None:
    layer = nn.Linear(5, 7, bias=False)
    inputs, outputs = torch.ones(3, 5), torch.ones(3, 7)
    assert kept_for_backward(lambda: layer(inputs) * outputs, layer.parameters()) == 4 * (3 * 5 + 3 * 7)
    both = nn.Linear(5, 7, bias=False)
    found = kept_for_backward(lambda: layer(inputs) + both(inputs), [*layer.parameters(), *both.parameters()])
    assert found == 4 * 3 * 5


def test_an_image_keeps_what_a_trained_backbone_keeps_of_it_and_nothing_is_changed() -> None:
    trained = tiny_vit()
    alone = kept_for_backward(lambda: trained(IMAGE).last_hidden_state[:, 0], trained.parameters())
    ours = learner()
    before = {name: parameter.requires_grad for name, parameter in ours.named_parameters()}
    assert 0.8 * alone < kept_by_image(ours, IMAGE) <= alone  # the last layer's patches are not computed
    assert {name: parameter.requires_grad for name, parameter in ours.named_parameters()} == before
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_an_adapter_without_experts_keeps_less() -> None:
    model = get_peft_model(tiny_vit(), LoraConfig(r=1, target_modules=["q_proj", "v_proj"]))
    of = PrototypeLearner(model, MetaTuningArguments())
    assert 0 < kept_by_image(of, IMAGE) < kept_by_image(learner(), IMAGE)
    found, learned = memory(of), sum(p.nbytes for p in of.parameters() if p.requires_grad)
    assert found["adapter"] == found["gradients"] == found["moments"] / 2 == learned
    assert "task weights" not in found


def test_each_part_is_counted() -> None:
    of = learner()
    size, found = adapted_size(of.model), memory(of)
    router = sum(parameter.nbytes for parameter in of.router.parameters())
    assert found["backbone"] == 4 * sum(parameter.numel() for parameter in tiny_vit().parameters())
    assert found["adapter"] == 4 * size * 3 + router + of.multipliers.nbytes  # a delta and two experts' gates
    assert found["moments"] == 4 * size + 2 * router
    assert found["task weights"] == 4 * size * (4 + 3)
    assert found["activations"] == 10 * KEPT


def test_chunks_and_processes_change_what_they_should() -> None:
    whole = memory(learner())
    chunked = memory(learner(max_batch_size=4))
    assert chunked == whole | {"activations": 4 * KEPT}
    assert memory(learner(max_batch_size=40)) == whole
    shared = memory(learner(), processes=4)
    size = adapted_size(learner().model)
    assert shared == whole | {"gradients": 2 * whole["gradients"], "task weights": 4 * size * (1 + 3)}
    assert memory(learner(delta_momentum=0.0))["moments"] < whole["moments"]
