"""The last block of a vision transformer computed for the class token alone, where a feature reads no other token.

Its attention needs all tokens as keys and values, but the projection of what was attended and the MLP treat each token
on its own: three quarters of the block. The sums with the residual stream broadcast; what they leave in the places of
other tokens means nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# By a transformers model's `config.model_type`: its blocks, and in a block the modules that begin the parts to cut.
BLOCKS = {
    "vit": "layers",
    "deit": "layers",
    "dinov2": "encoder.layer",
    "dinov2_with_registers": "encoder.layer",
    "dinov3_vit": "model.layer",
}
PARTS = ("attention.o_proj", "layernorm_after", "norm2")


@contextmanager
def class_token_alone(backbone: nn.Module) -> Iterator[None]:
    """While open, a call of `backbone` computes the first token of its last hidden state, and no other, where it can.

    Not under activation checkpointing, which would compute the block again when this is over.
    """
    handles = [module.register_forward_pre_hook(_first_token) for module in _parts(backbone)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(backbone: nn.Module) -> list[nn.Module]:
    path = BLOCKS.get(getattr(getattr(backbone, "config", None), "model_type", ""))
    if path is None or torch.compiler.is_compiling():
        return []
    block = list(backbone.get_submodule(path).children())[-1]
    if getattr(block, "gradient_checkpointing", False):
        return []
    return [module for name, module in block.named_modules() if name in PARTS]


def _first_token(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
    return (inputs[0][:, :1].contiguous(),)
