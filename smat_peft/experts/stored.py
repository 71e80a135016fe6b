"""Evaluated gates and their delta as a file holds them: what no expert uses is left out.

    used     for every four experts, a bit for each position: is one of the four open there?
    open     a bit for each of the four at each such position: is it open?
    partial  for each open gate, expert after expert, a bit: is it below 1? Empty where none is.
    values   of those gates, as they are or in 8 bits
    delta    where any expert is open

This is version 1 of the format. Files of it must be readable for ever.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from smat_peft.experts.bits import pack_bits, unpack_bits
from smat_peft.experts.gates import by_expert
from smat_peft.experts.packed import from_codes, to_codes

FORMAT_VERSION = 1
PARTS = ("used", "open", "partial", "values", "delta")
TOGETHER = 4  # experts that share a mask of used positions: at nine gates of ten closed the fewest bits in all


def encode(values: Float[Tensor, "M *gate_shape"], delta: Float[Tensor, "*shape"], *, exact: bool) -> dict[str, Tensor]:
    """Gate values and the delta in parts; values exact or in 8 bits."""
    flat = by_expert(values)
    used = [experts.amax(0) > 0 for experts in flat.split(TOGETHER)]
    inside = [experts[:, where] for experts, where in zip(flat.split(TOGETHER), used, strict=True)]
    opened = torch.cat([experts[experts > 0] for experts in inside])
    partial = opened < 1
    between = opened[partial]
    return {
        "used": pack_bits(torch.stack(used)),
        "open": torch.cat([pack_bits(experts > 0).flatten() for experts in inside]),
        "partial": pack_bits(partial)[: None if len(between) else 0],
        "values": between if exact else to_codes(between),
        "delta": delta[_any_open(flat > 0, values.shape[1:], delta.shape)],
    }


def decode(
    parts: Mapping[str, Tensor], num_experts: int, gate_shape: torch.Size, shape: torch.Size
) -> tuple[Float[Tensor, "M *gate_shape"], Float[Tensor, "*shape"]]:
    """The gate values in float32, and the delta, 0 where no expert is open.

    Raises:
        ValueError: The parts do not fit each other or the shapes; the message says which.
    """
    lacking = [part for part in PARTS if part not in parts]
    _require(not lacking, f"it lacks {', '.join(lacking)}")
    size, device = gate_shape.numel(), parts["used"].device
    used = _mask(parts["used"], (math.ceil(num_experts / TOGETHER), size), "used")
    is_open = torch.zeros(num_experts, size, dtype=torch.bool, device=device)
    groups = is_open.split(TOGETHER)
    counts = used.count_nonzero(1).tolist()
    lengths = [len(group) * math.ceil(count / 8) for group, count in zip(groups, counts, strict=True)]
    _require(len(parts["open"]) == sum(lengths), f"open has {len(parts['open'])} bytes instead of {sum(lengths)}")
    for group, where, packed, count in zip(groups, used, parts["open"].split(lengths), counts, strict=True):
        inside = _mask(packed.view(len(group), -1), (len(group), count), "open")
        _require(bool(inside.any(0).all()), "open disagrees with used: at a used position no expert is open")
        group.masked_scatter_(where.expand_as(group), inside)

    opened = torch.ones(int(is_open.count_nonzero()), device=device)
    between = from_codes(parts["values"])
    if len(between):
        partial = _mask(parts["partial"], opened.shape, "partial")
        _require(
            int(partial.count_nonzero()) == len(between),
            f"values has {len(between)} elements, partial has another number",
        )
        _require(bool(((between > 0) & (between < 1)).all()), "values are not between 0 and 1")
        opened[partial] = between
    values = torch.zeros(num_experts, size, device=device).masked_scatter_(is_open, opened)

    where, delta = _any_open(is_open, gate_shape, shape), parts["delta"]
    _require(delta.is_floating_point(), f"delta is of type {delta.dtype}")
    _require(
        delta.shape == (int(where.count_nonzero()),),
        f"delta has {delta.numel()} elements instead of {int(where.count_nonzero())}",
    )
    return values.view(num_experts, *gate_shape), delta.new_zeros(shape).masked_scatter_(where, delta)


def _any_open(is_open: Bool[Tensor, "M n"], gate_shape: torch.Size, shape: torch.Size) -> Bool[Tensor, "*shape"]:
    """Where in the parameter some expert is open."""
    return is_open.amax(0).view(gate_shape).expand(shape)


def _mask(packed: Tensor, shape: tuple[int, ...], part: str) -> Tensor:
    expected = (*shape[:-1], math.ceil(shape[-1] / 8))
    _require(packed.dtype == torch.uint8, f"{part} is of type {packed.dtype} instead of torch.uint8")
    _require(packed.shape == expected, f"{part} has the shape {tuple(packed.shape)} instead of {expected}")
    return unpack_bits(packed, shape[-1])


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
