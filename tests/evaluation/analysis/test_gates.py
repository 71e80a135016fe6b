"""Which gates are open: counted by hand, from logits and from a model."""

import numpy as np
import pytest
import torch
from peft import get_peft_model

from smat_peft import SMATConfig
from smat_peft.evaluation.analysis.capacity import capacity_by_depth, capacity_by_layer_type
from smat_peft.evaluation.analysis.gates import open_together, read_open_gates
from smat_peft.experts.gates import BLOCK, EVAL_TEMPERATURE, GATE_LIMIT, TRAIN_TEMPERATURE, gate_values
from smat_peft.tuner import adapters


@pytest.mark.parametrize("temperature", [EVAL_TEMPERATURE, TRAIN_TEMPERATURE])
def test_open_together_counts_gates_above_zero(temperature):
    logits = torch.randn(3, 2, BLOCK // 2 + 5, generator=torch.Generator().manual_seed(0)) * 3
    opened = (gate_values(logits, temperature) > 0).flatten(1).double()
    np.testing.assert_array_equal(open_together(logits, temperature), opened @ opened.T)


@pytest.fixture
def closed(make_vit):
    """A function that builds a ViT with two experts, all of whose gates are closed."""

    def make(**settings):
        model = get_peft_model(make_vit(), SMATConfig(num_experts=2, **settings))
        with torch.no_grad():
            for _, _, gates in adapters.adapter_gates(model, "default"):
                gates.fill_(-GATE_LIMIT)
        return model

    return make


def gates_of(model, wanted):
    found = {layer.full_name(name): gates for layer, name, gates in adapters.adapter_gates(model, "default")}
    return found[wanted]


@torch.no_grad()
def test_gates_that_are_opened_by_hand_are_found_where_they_are(closed):
    model = closed()
    weight, bias = "layers.1.mlp.fc2.weight", "layers.0.mlp.fc1.bias"
    gates_of(model, weight)[0, :, :8] = GATE_LIMIT  # 8 of 32 columns
    gates_of(model, weight)[1, :, 4:20] = GATE_LIMIT  # 16 of 32, 4 of them the first expert's
    gates_of(model, bias)[1] = GATE_LIMIT
    found = {each.name: each for each in read_open_gates(model)}
    assert found[weight].size == 16 * 32
    np.testing.assert_array_equal(found[weight].together, [[16 * 8, 16 * 4], [16 * 4, 16 * 16]])
    types = {part.part: part.shares for part in capacity_by_layer_type(list(found.values()))}
    np.testing.assert_allclose(types["MLP out"], [8 / 64, 16 / 64])  # one of two blocks
    np.testing.assert_allclose(types["biases"], [0, 32 / (2 * (4 * 16 + 32 + 16))])  # of two blocks
    np.testing.assert_array_equal(types["norms"], [0, 0])
    blocks = {part.part: part.shares[0] * part.size for part in capacity_by_depth(list(found.values()))}
    assert blocks == {"before": 0, "0": 0, "1": 16 * 8, "after": 0}


@torch.no_grad()
def test_a_structured_gate_opens_all_the_scalars_that_it_covers(closed):
    model = closed(gate_granularity="structured")
    gates_of(model, "layers.0.mlp.fc2.weight")[0, 0, :3] = GATE_LIMIT  # columns of 16 scalars
    (opened,) = (each for each in read_open_gates(model) if each.together.any())
    assert opened.together[0, 0] == 3 * 16


def test_an_experts_capacities_average_to_what_its_sparsity_leaves(smat_vit):
    parts = capacity_by_layer_type(read_open_gates(smat_vit))
    sizes = np.array([part.size for part in parts])
    shares = sizes @ np.stack([part.shares for part in parts]) / sizes.sum()
    np.testing.assert_allclose(shares, 1 - adapters.sparsity(smat_vit, training=False), atol=1e-6)
