"""Whatever bytes a file of others holds, its reader ends with what it says, or with a SmatError."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.readers import EPISODE, READERS, packed_file, survives

KINDS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    KINDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@pytest.mark.parametrize("name", READERS)
def test_whole_files_are_read(name: str) -> None:
    read, seeds = READERS[name]
    for data in seeds():
        assert survives(read, data) == (name != "specification")  # which is refused where it would look at the folder


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changed_ones_are_read_or_refused(name: str, data: st.DataObject) -> None:
    read, seeds = READERS[name]
    changed = bytearray(data.draw(st.sampled_from(seeds())))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed)))
        changed[place : place + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    survives(read, bytes(changed))


@pytest.mark.parametrize("name", ["checkpoint", "episodes"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_json_of_another_shape_is_read_or_refused(name: str, data: st.DataObject) -> None:
    read, seeds = READERS[name]
    whole = json.loads(seeds()[0]) if name == "checkpoint" else EPISODE
    key = data.draw(st.sampled_from(sorted(whole)))
    survives(read, json.dumps(whole | {key: data.draw(JSON)}).encode())
    survives(read, json.dumps(data.draw(JSON)).encode())


@settings(max_examples=50, deadline=None)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_packed_file_gives_gates_outside_their_range(place: int, bit: int) -> None:
    changed = bytearray(packed_file())
    changed[place % len(changed)] ^= 1 << bit
    survives(READERS["packed"][0], bytes(changed))
