"""Layer types and blocks by the names of parameters."""

import pytest

from smat_peft.evaluation.analysis.layers import LAYER_TYPES, block_labels, layer_type

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
    assert expected in LAYER_TYPES


def test_layer_types_are_named_once():
    assert len(set(LAYER_TYPES)) == len(LAYER_TYPES)


def test_blocks_are_told_by_the_first_two_numbers():
    names = ["cls_token", "layers.0.q.weight", "layers.10.mlp.fc1.weight", "norm.weight"]
    assert block_labels(names) == ["before", "0", "10", "after"]
    staged = ["stem.weight", "stages.0.layers.3.conv.weight", "stages.1.down.0.weight", "stages.1.layers.0.layer.1.w"]
    assert block_labels(staged) == ["before", "0.3", "1.0", "1.0"]
