"""Evaluated gates in few bits, in the form that merging reads.

Where all gates of a position are exactly 0 or 1, eight experts take one byte, and mixing them is a look-up of the byte.
The few other positions have values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smat_peft.experts.bits import pack_bits, unpack_bits
from smat_peft.experts.gates import by_expert
from smat_peft.experts.kernels import EXPERTS_AT_ONCE, mix

CODES = 255  # of a value in 8 bits; the first and the last would be the values 0 and 1


@dataclass(frozen=True)
class PackedGates:
    """The evaluated gates `[M, *shape]` of one parameter, `n` an expert.

    Attributes:
        open: For eight experts at a time, which of them are above 0, bytes `[ceil(M / 8), n]`.
        places: The positions at which some gate is between 0 and 1, int32 `[k]`.
        values: The gates there, as they are or in 8 bits, `[M, k]`.
        shape: The shape of one expert's gates.
    """

    open: Tensor
    places: Tensor
    values: Tensor
    shape: torch.Size

    def dense(self) -> Tensor:
        """The gates' values `[M, *shape]` in float32."""
        values = self._is_open().float().index_copy_(1, self.places.long(), from_codes(self.values))
        return values.view(-1, *self.shape)

    def open_gates(self) -> Tensor:
        """How many gates of each expert are above 0, `[M]`."""
        return self._is_open().count_nonzero(1)

    def open_somewhere(self) -> int:
        """At how many positions some expert is above 0."""
        return int(self.open.amax(0).count_nonzero())

    def _is_open(self) -> Tensor:
        return unpack_bits(self.open.T, len(self.values)).T


def pack_gates(values: Tensor, *, exact: bool) -> PackedGates:
    """Gate values `[M, *gate_shape]` in packed form; where not `exact`, those that 8 bits can say ([`rounded`])."""
    flat = by_expert(values)
    is_open = flat > 0
    places = (is_open & (flat < 1)).amax(0).nonzero().squeeze(1)
    between = flat.index_select(1, places)
    return PackedGates(
        open=pack_bits(is_open.T).T.contiguous(),
        places=places.int(),
        values=between if exact else to_codes(between),
        shape=values.shape[1:],
    )


@torch.no_grad()
def merge_packed_into(
    out: Sequence[Tensor],
    bases: Sequence[Tensor],
    deltas: Sequence[Tensor],
    gates: Sequence[PackedGates],
    weights: Tensor,
) -> None:
    """[`merge_many_into`][smat_peft.experts.interpolate.merge_many_into] of packed gates, without unpacking them.

    Where the values are exact, the result is the same to the bit, generated code aside.

    Args:
        out: Where to, in the shapes and types of `bases`.
        bases: Pre-trained parameters.
        deltas: Their deltas, of any floating type; all is computed in float32.
        gates: Their gates.
        weights: Weight of each expert, `[M]`.
    """
    with torch.autocast(weights.device.type, enabled=False):
        weights = weights.float()
        every_byte = torch.arange(2**EXPERTS_AT_ONCE, dtype=torch.uint8, device=weights.device)[:, None]
        sets = unpack_bits(every_byte, EXPERTS_AT_ONCE).T.float()
        tables = [mix(experts, sets[: len(experts)]) for experts in weights.split(EXPERTS_AT_ONCE)]
        for task, base, delta, packed in zip(out, bases, deltas, gates, strict=True):
            mask = tables[0].index_select(0, packed.open[0].int())
            for table, is_open in zip(tables[1:], packed.open[1:], strict=True):
                mask += table.index_select(0, is_open.int())
            if len(packed.places):
                mask.index_copy_(0, packed.places.long(), mix(weights, from_codes(packed.values)))
            task.copy_(torch.addcmul(base.float(), mask.view(packed.shape), delta.float()))


def rounded(values: Tensor) -> Tensor:
    """Gate values to the nearest that 8 bits can say."""
    return from_codes(to_codes(values))


def to_codes(values: Tensor) -> Tensor:
    """Values in `[0, 1]` in 8 bits."""
    return values.mul(CODES).round_().to(torch.uint8)


def from_codes(values: Tensor) -> Tensor:
    """Values, in 8 bits or not, in float32."""
    return values.float().div_(CODES) if values.dtype == torch.uint8 else values.float()
