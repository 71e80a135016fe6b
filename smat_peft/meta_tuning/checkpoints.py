"""Checkpoints of a run: whole or absent, and never a pickle.

A checkpoint is a folder `checkpoint-<step>` with `tensors.safetensors`, `state.json` and, written last, a manifest with
the size and SHA-256 of both. It is written beside its place, flushed to disk, and renamed into it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from smat_peft.errors import CheckpointError

FORMAT_VERSION = 1
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def save_checkpoint(output_dir: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write the checkpoint of one step; returns its folder."""
    folder = output_dir / f"checkpoint-{step}"
    scratch = output_dir / f".{folder.name}.{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, scratch / TENSORS)
    (scratch / STATE).write_text(json.dumps(state))
    files = {
        name: {"size": (scratch / name).stat().st_size, "sha256": _digest(scratch / name)} for name in (TENSORS, STATE)
    }
    manifest = {"format_version": FORMAT_VERSION, "step": step, "files": files}
    (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for name in (TENSORS, STATE, MANIFEST):
        _flush(scratch / name)
    _flush(scratch)
    if folder.exists():  # an older try at the same step
        shutil.rmtree(folder)
    scratch.rename(folder)
    _flush(output_dir)
    return folder


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a checkpoint.

    Raises:
        CheckpointError: Where it is missing, of a newer format, or not what was written.
    """
    manifest_path = folder / MANIFEST
    if not manifest_path.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {MANIFEST}")
    try:
        manifest = json.loads(manifest_path.read_text())
        written_by, files = (
            int(manifest["format_version"]),
            {name: manifest["files"][name] for name in (TENSORS, STATE)},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{manifest_path} is damaged; resume from another checkpoint") from error
    if written_by > FORMAT_VERSION:
        raise CheckpointError(f"{folder} was written by a newer smat_peft (format {written_by})")
    for name, written in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != written["size"] or _digest(path) != written["sha256"]:
            raise CheckpointError(f"{path} is not what was written; resume from another checkpoint")
    return load_file(folder / TENSORS), json.loads((folder / STATE).read_text())


def find_checkpoint(output_dir: Path, wanted: str) -> Path:
    """The folder that `--resume_from_checkpoint` means: a path, or `"latest"` in the output directory.

    Raises:
        CheckpointError: Where there is none.
    """
    if wanted != "latest":
        return Path(wanted)
    found = checkpoints(output_dir)
    if not found:
        raise CheckpointError(
            f"{output_dir} holds no checkpoint to resume from; start without --resume_from_checkpoint"
        )
    return found[-1]


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    found = [(int(match[1]), path) for path in output_dir.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def prune_checkpoints(output_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for path in checkpoints(output_dir)[: -keep or None]:
        shutil.rmtree(path)


def refuse_other_run(output_dir: Path) -> None:
    """Refuse to start a run where another one left its files, or where no folder can be.

    Raises:
        CheckpointError: Says what to do instead.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise CheckpointError(f"{output_dir} is a file; choose another folder")
    if checkpoints(output_dir) or (output_dir / "adapter_model.safetensors").exists():
        raise CheckpointError(
            f"{output_dir} holds another run; go on with --resume_from_checkpoint latest, or choose another folder"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
