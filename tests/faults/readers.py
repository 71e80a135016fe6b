"""What reads files and words of others, as functions of bytes that may end in a SmatError and in nothing else."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save

from smat_peft.commands.protocol import _without_test_options
from smat_peft.episodes import domains
from smat_peft.episodes.domain import Domain
from smat_peft.errors import DataError, SmatError
from smat_peft.evaluation.manifest import read_manifest
from smat_peft.meta_tuning.checkpoints import MANIFEST, load_checkpoint, save_checkpoint
from smat_peft.tuner.packed import PackedParameter

EXPERTS, SHAPE = 5, torch.Size((3, 4))
DOMAIN = Domain("d", {name: [Image.new("1", (1, 1))] * 3 for name in "ab"})
EPISODE: dict[str, Any] = {
    "domain": "d",
    "split": "all",
    "index": 0,
    "classes": ["a", "b"],
    "support": [[0], [1, 2]],
    "query": [[1], [0]],
}


def read_packed(data: bytes) -> None:
    """A parameter of a packed adapter, from the bytes of a safetensors file."""
    try:
        tensors = load(data)
    except SafetensorError:
        return  # the reader of safetensors has said no
    parameter = PackedParameter(SHAPE, SHAPE, EXPERTS)
    parameter._load_from_state_dict(tensors, "")
    gates = parameter.gates.dense()
    assert gates.shape == (EXPERTS, *SHAPE)
    assert bool(((gates >= 0) & (gates <= 1)).all())


def read_checkpoint_manifest(data: bytes) -> None:
    """The manifest of a checkpoint whose other files are whole."""
    (_checkpoint() / MANIFEST).write_bytes(data)
    load_checkpoint(_checkpoint())


def read_episode_manifest(data: bytes) -> None:
    """A list of episodes."""
    path = _folder() / "episodes.jsonl"
    path.write_bytes(data)
    for description in read_manifest(path, {"d": (DOMAIN, "all")})["d"]:
        for part in (description.support, description.query):
            assert all(0 <= number < 3 for of_class in part for number in of_class)


def read_specification(data: bytes) -> None:
    """The specification of a domain, up to where a folder or the Hub would be looked at."""
    spec = data.decode("utf-8", "replace")
    location, _ = _without_test_options(spec)
    known = domains.SOURCES
    try:
        domains.SOURCES = {
            name: replace(source, load=_refuse, expand=lambda place: [place]) for name, source in known.items()
        }
        domains.load_domain(location)
    finally:
        domains.SOURCES = known


def _refuse(location: str, options: Mapping[str, str], settings: Any) -> NoReturn:
    raise DataError(f"{location} is not looked at")


def packed_file(seed: int = 0) -> bytes:
    """A whole file of [`read_packed`]."""
    torch.manual_seed(seed)
    parameter = PackedParameter(SHAPE, SHAPE, EXPERTS)
    parameter.fill(torch.rand(EXPERTS, *SHAPE).mul(3).sub(1).clamp(0, 1), torch.randn(SHAPE), exact=seed % 2 == 0)
    data: bytes = save(parameter.state_dict())
    return data


READERS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "packed": (read_packed, lambda: [packed_file(seed) for seed in range(4)]),
    "checkpoint": (read_checkpoint_manifest, lambda: [_whole_manifest()]),
    "episodes": (read_episode_manifest, lambda: [json.dumps(EPISODE).encode()]),
    "specification": (
        read_specification,
        lambda: [b"folder:a/b?splits=c&augment=crop,colour&ways=5&shots=1", b"hub:a/b:c@d?image=x&label=y&classes=all"],
    ),
}


def survives(read: Callable[[bytes], None], data: bytes) -> bool:
    """Whether the bytes were read; False for a SmatError. Any other error is raised."""
    try:
        read(data)
    except SmatError:
        return False
    return True


@functools.cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory()
    _kept.append(folder)
    return Path(folder.name)


@functools.cache
def _checkpoint() -> Path:
    return save_checkpoint(_folder(), 1, {"weight": torch.zeros(2)}, {"step": 1}, {"arguments": {"seed": 0}})


@functools.cache
def _whole_manifest() -> bytes:
    return (_checkpoint() / MANIFEST).read_bytes()


_kept: list[tempfile.TemporaryDirectory[str]] = []
