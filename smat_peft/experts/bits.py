"""Masks as bits, eight in a byte, the first in the lowest."""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

SPREAD = sum(1 << 7 * power for power in range(1, 9))  # times eight bytes of 0 or 1: their bits, in the highest byte


def pack_bits(mask: Bool[Tensor, "*rows n"]) -> UInt8[Tensor, "*rows bytes"]:
    """A mask as bytes, `ceil(n / 8)` a row."""
    *rows, size = mask.shape
    padded = mask.new_zeros(*rows, math.ceil(size / 8), 8)
    padded.flatten(-2)[..., :size] = mask
    return (padded.flatten().view(torch.int64) * SPREAD >> 56).to(torch.uint8).view(padded.shape[:-1])


def unpack_bits(packed: UInt8[Tensor, "*rows bytes"], size: int) -> Bool[Tensor, "*rows {size}"]:
    """The mask that is in bytes, `ceil(size / 8)` a row."""
    eight = _eight_of_every_byte(packed.device).index_select(0, packed.flatten().int())
    return eight.view(packed.shape).view(torch.bool)[..., :size]


@functools.cache
def _eight_of_every_byte(device: torch.device) -> Tensor:
    """For every byte its eight bits, each in a byte of its own, as one number."""
    with torch.inference_mode(False):
        bits = torch.arange(256)[:, None] >> torch.arange(8) & 1
        return bits.to(torch.uint8).view(torch.int64).flatten().to(device)
