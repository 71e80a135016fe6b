"""Hard-concrete gates: how a gate logit becomes a value in [0, 1], and how many values should be open (METHOD 2).

Gate logits are a tensor `[M, *gate_shape]`, experts first, where `gate_shape` broadcasts to the shape of the parameter
they gate: the same shape for element gates, a smaller one for structured gates.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

GateGranularity = Literal["element", "structured"]

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1  # gamma and zeta of Louizos et al. 2018, eq. 11; METHOD 1
TRAIN_TEMPERATURE = 2 / 3  # beta in training, METHOD 1
EVAL_TEMPERATURE = 1.0  # beta of the reference's evaluation, METHOD 2
GATE_LIMIT = math.log(100.0)  # logits are kept within +- this, METHOD 2; both ends give values of exactly 0 and 1
BLOCK = 65_536  # gates of an expert at a time: with eight experts 2 MB; the fastest between 4 Ki and 128 Ki on a CPU
EXPECTED_L0_SHIFT = TRAIN_TEMPERATURE * math.log(-STRETCH_HIGH / STRETCH_LOW)  # beta ln 11


def gate_shape(shape: torch.Size, granularity: GateGranularity) -> torch.Size:
    """Shape of the gates over a parameter of `shape`.

    Structured gates hold one gate per input column of a matrix, one per output channel of a convolution, and one per
    element of anything else.
    """
    if granularity == "element" or len(shape) < 2 or shape[0] == 1:
        return shape
    if len(shape) == 2:
        return torch.Size((1, shape[1]))
    return torch.Size((shape[0], *(1 for _ in shape[1:])))


def gate_values(logits: Float[Tensor, "*shape"], temperature: float) -> Float[Tensor, "*shape"]:
    """Gate values `clip(1.2 sigmoid(logits / temperature) - 0.1, 0, 1)`.

    Use [`TRAIN_TEMPERATURE`] for the gates that training sees and [`EVAL_TEMPERATURE`] for the reference's evaluation.
    """
    return stretch(gate_sigmoid(logits, temperature)).clamp_(0.0, 1.0)


def kept_type(base: torch.dtype) -> torch.dtype:
    """Type of gate values that are kept for parameters of type `base`: 16 bits, the same where `base` has them."""
    return base if base in (torch.float16, torch.bfloat16) else torch.float16


def gate_sigmoid(logits: Float[Tensor, "*shape"], temperature: float) -> Float[Tensor, "*shape"]:
    """`sigmoid(logits / temperature)`."""
    return torch.sigmoid(logits if temperature == 1 else logits / temperature)


def stretch(sigmoid: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The hard-concrete stretch of a sigmoid to [-0.1, 1.1]; a gate's value is this, clipped to [0, 1]."""
    return sigmoid.mul(STRETCH_HIGH - STRETCH_LOW).add_(STRETCH_LOW)


def by_expert(gates: Float[Tensor, "M *gate_shape"]) -> Float[Tensor, "M n"]:
    """Gates as a matrix with one row an expert; a scalar parameter's `[M]` has rows of one."""
    return gates.unsqueeze(-1).flatten(1)


def clamp_gates_(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Keep gate logits within +-[`GATE_LIMIT`], in place."""
    with torch.no_grad():
        return logits.clamp_(-GATE_LIMIT, GATE_LIMIT)


def initialise_gates_(logits: Float[Tensor, "*shape"], std: float) -> Float[Tensor, "*shape"]:
    """Draw gate logits from Normal(0, std), in place, within the limits."""
    return clamp_gates_(nn.init.normal_(logits, std=std))
