"""Reading the authors' checkpoints: tensors only, whatever else a file may hold."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor

from smat_peft.errors import CheckpointError
from smat_peft.few_shot.loading import one_line_errors
from smat_peft.sharing.reference_layout import NEVER_SAVED, ROUTER

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
STATE = "model"  # where a training checkpoint holds the state dict


@dataclass(frozen=True)
class ReferenceCheckpoint:
    """A checkpoint of the authors' code.

    Attributes:
        source: Where it is from.
        tensors: The model's state dict.
        others: What else the file holds, such as the optimiser's state.
    """

    source: str
    tensors: Mapping[str, Tensor]
    others: tuple[str, ...] = ()


def read_reference_checkpoint(
    path_or_repo: str | Path,
    *,
    filename: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> ReferenceCheckpoint:
    """Read a checkpoint without executing anything that it holds.

    Args:
        path_or_repo: A file, a folder with one, or the name of a repository on the Hub.
        filename: Which file of a folder or repository, where it holds several.
        revision: Branch, tag or commit of the repository.
        token: The Hub's token, as its client takes it.

    Raises:
        CheckpointError: There is no such file, or it holds something else than tensors.
    """
    path = Path(path_or_repo).expanduser()
    if not path.exists():
        patterns = [filename] if filename else [f"*{suffix}" for suffix in SUFFIXES]
        with one_line_errors(f"checkpoint {str(path_or_repo)!r}, neither a file here nor on the Hub"):
            path = Path(snapshot_download(str(path_or_repo), revision=revision, token=token, allow_patterns=patterns))
    if path.is_dir():
        path = _file_in(path, str(path_or_repo), filename)
    content = _read(path)
    state = content.get(STATE, content)
    others = [name for name in content if state is not content and name != STATE]
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: what it calls {STATE!r} is no state dict but of type {type(state).__name__}")
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    others += [name for name, value in state.items() if not isinstance(value, Tensor)]
    return ReferenceCheckpoint(str(path_or_repo), tensors, tuple(str(name) for name in others))


def read_router_file(path: str | Path) -> dict[str, Tensor]:
    """The expert keys and skill tokens that a file holds, among others or alone, by the names of the authors' code."""
    tensors = read_reference_checkpoint(path).tensors
    return {name: tensor for name, tensor in tensors.items() if f"{ROUTER}{name.removeprefix(ROUTER)}" in NEVER_SAVED}


def _file_in(folder: Path, source: str, filename: str | None) -> Path:
    if filename is not None:
        if not (folder / filename).is_file():
            raise CheckpointError(f"{source} holds no file {filename!r}")
        return folder / filename
    found = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)
    if len(found) != 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found) or "none"
        raise CheckpointError(
            f"{source} must hold one checkpoint ({', '.join(SUFFIXES)}), or filename say which: {names}"
        )
    return found[0]


def _read(path: Path) -> Mapping[Any, Any]:
    if path.suffix == ".safetensors":
        with one_line_errors(str(path)):
            return load_file(path)
    with _refusals_named(path), one_line_errors(str(path)):
        # Mapped, so that the optimiser's half of the file is never read; the old form cannot be.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds no state dict but an object of type {type(content).__name__}")
    return content


@contextmanager
def _refusals_named(path: Path) -> Iterator[None]:
    """The refusal of a pickle of more than tensors in our words: torch's own advise to execute it."""
    try:
        yield
    except CheckpointError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None and "Weights only load failed" not in str(error):
            raise
        what = f" ({refused[1]})" if refused else ""
        raise CheckpointError(
            f"{path} is refused: it is a pickle of more than tensors{what}, and nothing in it was executed; "
            "whoever trusts it can save its tensors alone, as safetensors"
        ) from None
