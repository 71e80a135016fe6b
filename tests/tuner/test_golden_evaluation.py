"""Evaluation equals the golden numbers of METHOD 2-6, through the real tuner on transformers' ViTModel."""

import pytest
import torch

from smat_peft.experts.gates import gate_values
from smat_peft.experts.prototypes import class_means, cosine_logits
from smat_peft.tuner.adapters import find_router, smat_layers
from tests.golden_state import distance, episode, golden_model, numbers, section

pytestmark = pytest.mark.usefixtures("engine")


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("index", [0, 1])
@torch.no_grad()
def test_adapting_to_a_golden_episode_gives_the_golden_logits(pooling: str, index: int) -> None:
    golden = numbers(f"eval_ep{index}")
    model, task = golden_model(pooling).eval(), episode(index)

    with model.task({}):
        frozen = model.features(task.support)
        prototypes = class_means(frozen, task.support_labels)
        base_logits = cosine_logits(model.features(task.query), prototypes)
    assert distance(prototypes, golden["base_prototypes"]) < 1e-5
    assert distance(base_logits, golden["base_query_logits"]) < 1e-5
    assert distance(model.sparsity(), golden["sparsity"]) < 1e-5
    assert distance(model.expected_l0(), golden["expected_l0"]) < 1e-5

    embedding = find_router(model).router("default").embed(prototypes)
    assert distance(embedding, golden[f"{pooling}/task_embedding"]) < 1e-5

    routed = model.adapt(task.support, task.support_labels)
    for name, tensor in (("router_logits", routed.logits), ("scores", routed.scores), ("weights", routed.weights)):
        assert distance(tensor, golden[f"{pooling}/{name}"]) < 1e-5, name

    prototypes = class_means(model.features(task.support), task.support_labels)
    assert distance(prototypes, golden[f"{pooling}/prototypes"]) < 1e-5
    logits = cosine_logits(model.features(task.query), prototypes)
    assert distance(logits, golden[f"{pooling}/query_logits"]) < 1e-5


@pytest.mark.parametrize(("file", "training"), [("eval_ep0", False), ("train_ep0", True)])
@torch.no_grad()
def test_gates_and_task_weights_equal_the_golden_ones(file: str, training: bool) -> None:
    golden = numbers(file)
    model = golden_model("first").train(training)

    gates = {
        layer.full_name(name): gate_values(logits, layer.gate_temperature("default", training))
        for layer in smat_layers(model)
        for name, logits in layer.smat_gates["default"].items()
    }
    assert gates.keys() == section(golden, "gates").keys()
    for name, tensor in section(golden, "gates").items():
        assert distance(gates[name], tensor) < 1e-5, name

    weights = model.interpolate(golden["weights" if training else "first/weights"])
    assert weights.keys() == section(golden, "task_weights").keys()
    for name, tensor in section(golden, "task_weights").items():
        assert distance(weights[name], tensor) < 1e-5, name
