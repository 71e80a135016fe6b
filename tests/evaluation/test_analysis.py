"""Numbers of an analysis: layer types and blocks by name, capacities, overlaps, cosines of gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from smat_peft.evaluation import analysis
from smat_peft.evaluation.analysis import OpenGates, block_labels, capacities, layer_type, overlap, random_overlap
from smat_peft.experts.gates import BLOCK, EVAL_TEMPERATURE, TRAIN_TEMPERATURE, gate_values

NAMES = [
    ("embeddings.cls_token", "ViTEmbeddings", "embeddings"),
    ("embeddings.patch_embeddings.projection.weight", "Conv2d", "embeddings"),
    ("patch_embed.proj.bias", "Conv2d", "embeddings"),
    ("encoder.layers.0.blocks.0.attention.relative_position_bias_table", "Module", "embeddings"),
    ("head.probe", "SiglipMultiheadAttentionPoolingHead", "embeddings"),
    ("embeddings.norm.weight", "LayerNorm", "norms"),
    ("pre_layrnorm.bias", "LayerNorm", "norms"),
    ("encoder.stages.1.downsampling_layer.0.weight", "ConvNextLayerNorm", "norms"),
    ("encoder.stages.0.layers.0.layer.1.normalization.weight", "BatchNorm2d", "norms"),
    ("layers.0.attention.q_proj.weight", "Linear", "attention query"),
    ("encoder.layer.3.attention.attention.query.weight", "Linear", "attention query"),
    ("encoder.layers.3.self_attn.k_proj.weight", "Linear", "attention key"),
    ("encoder.layer.3.attention.attention.key.weight", "Linear", "attention key"),
    ("layers.0.attention.v_proj.weight", "Linear", "attention value"),
    ("blocks.0.attn.qkv.weight", "Linear", "attention q, k, v"),
    ("head.attention.in_proj_weight", "MultiheadAttention", "attention q, k, v"),
    ("layers.0.attention.o_proj.weight", "Linear", "attention output"),
    ("encoder.layers.0.self_attn.out_proj.weight", "Linear", "attention output"),
    ("encoder.layer.0.attention.output.dense.weight", "Linear", "attention output"),
    ("blocks.0.attn.proj.weight", "Linear", "attention output"),
    ("layers.0.attention.q_proj.bias", "Linear", "biases"),
    ("blocks.0.attn.qkv.bias", "Linear", "biases"),
    ("encoder.stages.0.layers.0.dwconv.bias", "Conv2d", "biases"),
    ("layers.0.mlp.fc1.weight", "Linear", "MLP in"),
    ("model.layer.0.mlp.up_proj.weight", "Linear", "MLP in"),
    ("encoder.layer.0.intermediate.dense.weight", "Linear", "MLP in"),
    ("layers.11.mlp.fc2.weight", "Linear", "MLP out"),
    ("encoder.layer.0.output.dense.weight", "Linear", "MLP out"),
    ("encoder.stages.0.layers.0.pwconv2.weight", "Linear", "MLP out"),
    ("encoder.layer.0.layer_scale1.lambda1", "Dinov2LayerScale", "scales"),
    ("encoder.stages.0.layers.0.layer_scale_parameter", "ConvNextLayer", "scales"),
    ("encoder.stages.0.layers.0.dwconv.weight", "Conv2d", "convolutions"),
    ("encoder.layers.0.downsample.reduction.weight", "Linear", "other"),
]


@pytest.mark.parametrize(("name", "owner", "expected"), NAMES, ids=[name for name, _, _ in NAMES])
def test_a_parameter_is_known_by_its_name(name, owner, expected):
    assert layer_type(name, owner) == expected
    assert expected in analysis.LAYER_TYPES


def test_layer_types_are_named_once():
    assert len(set(analysis.LAYER_TYPES)) == len(analysis.LAYER_TYPES)


def test_blocks_are_told_by_the_first_two_numbers():
    names = ["cls_token", "layers.0.q.weight", "layers.10.mlp.fc1.weight", "norm.weight"]
    assert block_labels(names) == ["before", "0", "10", "after"]
    staged = ["stem.weight", "stages.0.layers.3.conv.weight", "stages.1.down.0.weight", "stages.1.layers.0.layer.1.w"]
    assert block_labels(staged) == ["before", "0.3", "1.0", "1.0"]


@st.composite
def adapters(draw):
    """Gates of a few parameters for a few experts, and their masks, `[M, n]` each."""
    experts = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    masks = [draw(np_st.arrays(bool, (experts, size))) for size in sizes]
    gates = [
        OpenGates(f"layers.{number}.weight", "Linear", mask.shape[1], mask.astype(float) @ mask.T.astype(float))
        for number, mask in enumerate(masks)
    ]
    return gates, np.concatenate(masks, axis=1)


@given(adapters(), st.data())
def test_capacities_average_to_the_share_of_open_gates(adapter, data):
    gates, masks = adapter
    parts = data.draw(st.lists(st.sampled_from("abc"), min_size=len(gates), max_size=len(gates)))
    found = capacities(gates, parts)
    assert [capacity.part for capacity in found] == list(dict.fromkeys(parts))
    sizes = np.array([capacity.size for capacity in found])
    average = sizes @ np.stack([capacity.shares for capacity in found]) / sizes.sum()
    np.testing.assert_allclose(average, masks.mean(1))


@given(adapters())
def test_overlap_is_intersection_over_union(adapter):
    gates, masks = adapter
    found = overlap(gates)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(found.diagonal(), 1)
    for i, one in enumerate(masks):
        for j, other in enumerate(masks):
            union = (one | other).sum()
            assert found[i, j] == pytest.approx((one & other).sum() / union if union else 1)


@given(adapters(), st.booleans())
def test_random_overlap_is_symmetric_with_ones_on_the_diagonal_and_at_most_one(adapter, by_parameter):
    found = random_overlap(adapter[0], by_parameter=by_parameter)
    np.testing.assert_allclose(found, found.T)
    np.testing.assert_allclose(found.diagonal(), 1)
    assert found.max() <= 1 + 1e-12


@pytest.mark.parametrize("by_parameter", [False, True])
def test_random_overlap_is_what_random_masks_have(by_parameter):
    random = np.random.default_rng(0)
    densities = np.array([[0.1, 0.3], [0.6, 0.4]]) if by_parameter else np.array([[0.2, 0.5], [0.2, 0.5]])
    masks = [random.random((2, 200_000)) < of_parameter[:, None] for of_parameter in densities]
    gates = [OpenGates("", "", 200_000, mask.astype(float) @ mask.T.astype(float)) for mask in masks]
    expected = random_overlap(gates, by_parameter=by_parameter)
    assert overlap(gates)[0, 1] == pytest.approx(expected[0, 1], rel=0.01)


@pytest.mark.parametrize("temperature", [EVAL_TEMPERATURE, TRAIN_TEMPERATURE])
def test_open_together_counts_gates_above_zero(temperature):
    logits = torch.randn(3, 2, BLOCK // 2 + 5, generator=torch.Generator().manual_seed(0)) * 3
    opened = (gate_values(logits, temperature) > 0).flatten(1).double()
    np.testing.assert_array_equal(analysis.open_together(logits, temperature), opened @ opened.T)


def test_a_gradients_parts_are_those_of_the_delta_and_of_each_expert():
    random = torch.Generator().manual_seed(0)
    gradients = [torch.randn(2, 4, 3, generator=random), torch.randn(2, 5, generator=random)]
    gates = [torch.rand(3, 4, 3, generator=random), torch.rand(3, 5, generator=random)]
    weights = torch.rand(2, 3, generator=random)
    found = analysis.gradient_cosines(gradients, gates, weights)
    flat = torch.cat([gradient.flatten(1) for gradient in gradients], 1)
    values = torch.cat([each.flatten(1) for each in gates], 1)
    for number, parts in enumerate([flat * (weights @ values), *(flat * expert for expert in values)]):
        expected = torch.cosine_similarity(parts[0], parts[1], dim=0)
        assert found[number, 0, 1] == pytest.approx(expected.item(), abs=1e-5)
        np.testing.assert_allclose(found[number].diagonal(), 1)


def test_structured_gates_cover_what_they_broadcast_to():
    gradient, gates = torch.tensor([[[1.0, 2.0]], [[1.0, -2.0]]]), torch.tensor([[[1.0, 0.0]]])
    found = analysis.gradient_cosines([gradient], [gates], torch.ones(2, 1))
    np.testing.assert_allclose(found[1], 1)


def test_an_expert_that_opens_nothing_has_no_cosine():
    found = analysis.gradient_cosines([torch.ones(2, 3)], [torch.zeros(1, 3)], torch.ones(2, 1))
    assert np.isnan(found).all()


def test_between_halves_compares_a_domain_with_itself_on_other_tasks():
    cosines = np.arange(16, dtype=float).reshape(1, 4, 4)
    found = analysis.between_halves(cosines)[0]
    assert found[0, 0] == cosines[0, 0, 1]
    assert found[1, 1] == cosines[0, 2, 3]
    assert found[0, 1] == cosines[0, :2, 2:].mean()


def test_rows_that_are_alike_are_joined_first():
    tree = analysis.cluster(np.array([[0.9, 0.1], [0.1, 0.9], [0.8, 0.2]]))
    assert sorted(tree[0, :2]) == [0, 2]
