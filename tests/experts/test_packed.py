"""Packed gates: bits, what a file holds, and merging without unpacking."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from smat_peft.experts.bits import pack_bits, unpack_bits
from smat_peft.experts.interpolate import merge_many_into
from smat_peft.experts.packed import merge_packed_into, pack_gates, rounded
from smat_peft.experts.stored import PARTS, decode, encode

SHAPES = st.sampled_from([(1,), (7,), (8,), (3, 5), (9, 16), (2, 3, 4)])


def draw_gates(experts: int, shape: tuple[int, ...], seed: int, closed: float = 0.5) -> Tensor:
    """Gate values of which some are exactly 0, some exactly 1, some between."""
    generator = torch.Generator().manual_seed(seed)
    kinds, values = (torch.rand(experts, *shape, generator=generator) for _ in range(2))
    return torch.where(kinds < closed, 0.0, torch.where(kinds < closed + 0.3, 1.0, values.clamp(1e-3, 1 - 1e-3)))


@given(st.integers(0, 4), st.integers(0, 40), st.integers(0, 99))
def test_bits_come_back_and_take_an_eighth(rows: int, size: int, seed: int) -> None:
    mask = torch.rand(rows, size, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_bits(mask)
    assert packed.shape == (rows, -(-size // 8))
    assert torch.equal(unpack_bits(packed, size), mask)


def test_the_first_of_eight_is_in_the_lowest_bit() -> None:
    mask = torch.tensor([True, False, False, True, False, False, False, False, True])
    assert pack_bits(mask).tolist() == [0b1001, 1]


@given(st.integers(1, 17), SHAPES, st.integers(0, 99), st.booleans())
def test_a_file_gives_back_gates_and_the_delta_that_is_used(
    experts: int, shape: tuple[int, ...], seed: int, exact: bool
) -> None:
    values = draw_gates(experts, shape, seed)
    values = values if exact else rounded(values)
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    gates, kept = decode(encode(values, delta, exact=exact), experts, torch.Size(shape), torch.Size(shape))
    assert torch.equal(gates, values)
    assert torch.equal(kept, torch.where((values > 0).any(0), delta, 0.0))


def test_structured_gates_keep_the_delta_of_all_that_they_cover() -> None:
    values = torch.tensor([[[0.0], [1.0], [0.0]], [[0.0], [0.25], [0.0]]])
    delta = torch.arange(12.0).view(3, 4)
    gates, kept = decode(encode(values, delta, exact=True), 2, values.shape[1:], delta.shape)
    assert torch.equal(gates, values)
    assert torch.equal(kept, delta * torch.tensor([[0.0], [1.0], [0.0]]))


@given(SHAPES, st.integers(0, 99))
def test_values_of_0_and_1_cost_their_bits_alone(shape: tuple[int, ...], seed: int) -> None:
    values = draw_gates(8, shape, seed).round()
    parts = encode(values, torch.zeros(shape), exact=True)
    assert parts["values"].numel() == parts["partial"].numel() == 0
    size = torch.Size(shape).numel()
    assert parts["used"].numel() + parts["open"].numel() <= 2 * (-(-size // 8)) + 8 * (-(-size // 8))


@given(st.integers(1, 17), SHAPES, st.integers(0, 99))
def test_merging_exact_gates_is_merging_their_values_to_the_bit(
    experts: int, shape: tuple[int, ...], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    bases, deltas = ([torch.randn(each, generator=generator) for each in (shape, (5,), (70, 90))] for _ in range(2))
    values = [draw_gates(experts, tuple(base.shape), seed) for base in bases]
    weights = torch.rand(experts, generator=generator)
    expected, found = ([torch.empty_like(base) for base in bases] for _ in range(2))
    merge_many_into(expected, bases, deltas, values, weights, None)
    merge_packed_into(found, bases, deltas, [pack_gates(value, exact=True) for value in values], weights)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@given(SHAPES, st.integers(0, 99))
def test_values_in_8_bits_are_off_by_half_a_step_at_most_and_0_and_1_by_nothing(
    shape: tuple[int, ...], seed: int
) -> None:
    values = draw_gates(4, shape, seed)
    again = pack_gates(rounded(values), exact=False).dense()
    assert (again - values).abs().max() <= 0.5 / 255 + 1e-7
    whole = (values == 0) | (values == 1)
    assert torch.equal(again[whole], values[whole])


def test_open_gates_are_counted_by_expert_and_somewhere() -> None:
    gates = pack_gates(torch.tensor([[0.0, 0.5, 1.0, 0.0], [0.0, 0.0, 0.2, 1.0]]), exact=True)
    assert gates.open_gates().tolist() == [2, 2]
    assert gates.open_somewhere() == 3


def damaged(part: str, change: str) -> dict[str, Tensor]:
    parts = encode(draw_gates(3, (4, 6), 0), torch.randn(4, 6), exact=True)
    tensor = parts.pop(part)
    if change == "short":
        parts[part] = tensor[..., :-1]
    elif change == "type":
        parts[part] = tensor.to(torch.int16)
    elif change == "ones":
        parts[part] = torch.full_like(tensor, 255 if tensor.dtype == torch.uint8 else 1)
    return parts


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("change", ["missing", "short", "type", "ones"])
def test_parts_that_do_not_fit_each_other_are_refused_by_name(part: str, change: str) -> None:
    if (part, change) == ("delta", "ones"):
        return  # a delta may be all ones
    with pytest.raises(ValueError, match=r"lacks|instead of|another number|not between 0 and 1|is of type|disagrees"):
        decode(damaged(part, change), 3, torch.Size((4, 6)), torch.Size((4, 6)))
