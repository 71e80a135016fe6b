"""Evaluated gates in few bits, in the form that merging reads.

Where all gates of a position are exactly 0 or 1, eight experts take one byte, and mixing them is a look-up of the byte.
The few other positions have values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int32, Shaped, UInt8
from torch import Tensor

from smat_peft.experts.bits import pack_bits, unpack_bits
from smat_peft.experts.gates import by_expert
from smat_peft.experts.interpolate import SMALL, end_to_end
from smat_peft.experts.kernels import EXPERTS_AT_ONCE, mix

CODES = 255  # of a value in 8 bits; the first and the last would be the values 0 and 1


@dataclass(frozen=True)
class PackedGates:
    """The evaluated gates `[M, *shape]` of one parameter, `n` an expert.

    Attributes:
        open: For eight experts at a time, which of them are above 0.
        places: The positions at which some gate is between 0 and 1.
        values: The gates there, as they are or in 8 bits.
        shape: The shape of one expert's gates.
    """

    open: UInt8[Tensor, "bytes n"]
    places: Int32[Tensor, " k"]
    values: Shaped[Tensor, "M k"]
    shape: torch.Size

    def dense(self) -> Float[Tensor, "M *gate_shape"]:
        """The gates' values in float32."""
        values = self._is_open().float().index_copy_(1, self.places.long(), from_codes(self.values))
        return values.view(-1, *self.shape)

    def open_gates(self) -> Int[Tensor, " M"]:
        """How many gates of each expert are above 0."""
        return self._is_open().count_nonzero(1)

    def open_somewhere(self) -> int:
        """At how many positions some expert is above 0."""
        return int(self.open.amax(0).count_nonzero())

    def _is_open(self) -> Bool[Tensor, "M n"]:
        return unpack_bits(self.open.T, len(self.values)).T


def pack_gates(values: Float[Tensor, "M *gate_shape"], *, exact: bool) -> PackedGates:
    """Gate values in packed form; where not `exact`, those that 8 bits can say ([`rounded`])."""
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
    weights: Float[Tensor, " M"],
) -> None:
    """[`merge_many_into`][smat_peft.experts.interpolate.merge_many_into] of packed gates, without unpacking them.

    Where their values are exact, the result is the same to the bit, generated code aside.

    Args:
        out: Where to, in the shapes and types of `bases`, contiguous.
        bases: Pre-trained parameters.
        deltas: Their deltas, of one floating type; all is computed in float32.
        gates: Their gates, all exact or all in 8 bits.
        weights: Weight of each expert.
    """
    with torch.autocast(weights.device.type, enabled=False):
        weights = weights.float()
        tables = _mixes_of_every_byte(weights)
        small = [
            i
            for i, base in enumerate(bases)
            if base.numel() <= SMALL and base.dtype == bases[0].dtype and gates[i].shape == base.shape
        ]
        if small:
            base, delta = end_to_end(small, bases), end_to_end(small, deltas)
            merged = _merge(base, delta, _joined([gates[i] for i in small]), weights, tables).split(
                [bases[i].numel() for i in small]
            )
            torch._foreach_copy_([out[i].view(-1) for i in small], list(merged))
        for i in set(range(len(bases))).difference(small):
            out[i].copy_(_merge(bases[i], deltas[i], gates[i], weights, tables))


def _mixes_of_every_byte(weights: Float[Tensor, " M"]) -> list[Float[Tensor, "256"]]:
    """For eight experts at a time: the mix of gates of 0 and 1 for every byte that says which are open."""
    every_byte = torch.arange(2**EXPERTS_AT_ONCE, dtype=torch.uint8, device=weights.device)
    sets = unpack_bits(every_byte[:, None], EXPERTS_AT_ONCE).T.float()
    return [mix(experts, sets[: len(experts)]) for experts in weights.split(EXPERTS_AT_ONCE)]


def _merge(base: Tensor, delta: Tensor, gates: PackedGates, weights: Tensor, tables: Sequence[Tensor]) -> Tensor:
    mask = tables[0].index_select(0, gates.open[0].int())
    for table, is_open in zip(tables[1:], gates.open[1:], strict=True):
        mask += table.index_select(0, is_open.int())
    mask.index_copy_(0, gates.places.long(), mix(weights, from_codes(gates.values)))
    return torch.addcmul(base.float(), mask.view(gates.shape), delta.float())


def _joined(gates: Sequence[PackedGates]) -> PackedGates:
    """The gates of several parameters, laid end to end."""
    sizes = torch.tensor([packed.shape.numel() for packed in gates])
    counts = torch.tensor([len(packed.places) for packed in gates])
    before = (sizes.cumsum(0) - sizes).repeat_interleave(counts)
    places = torch.cat([packed.places for packed in gates])
    return PackedGates(
        open=torch.cat([packed.open for packed in gates], dim=1),
        places=places + before.to(places),
        values=torch.cat([packed.values for packed in gates], dim=1),
        shape=torch.Size([int(sizes.sum())]),
    )


def rounded(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Gate values to the nearest that 8 bits can say."""
    return from_codes(to_codes(values))


def to_codes(values: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Values in `[0, 1]` in 8 bits."""
    return values.mul(CODES).round_().to(torch.uint8)


def from_codes(values: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Values, in 8 bits or not, in float32."""
    return values.float().div_(CODES) if values.dtype == torch.uint8 else values.float()
