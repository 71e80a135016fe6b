"""Checkpoints of a run: whole or absent, and never a pickle.

A checkpoint is a folder `checkpoint-<step>` with `tensors.safetensors`, `state.json` and, written last, a manifest: the
size and SHA-256 of both, and what run it is of. It is written beside its place, flushed to disk, and renamed into it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from smat_peft.errors import CheckpointError
from smat_peft.files import REPLACED, remove_folder, replacing_folder, sha256_of

FORMAT_VERSION = 2
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_NAME = re.compile(rf"checkpoint-(\d+)({re.escape(REPLACED)})?")


class Checkpoint(NamedTuple):
    """What a checkpoint holds: tensors, plain state, and the description of the run that it is of.

    Format 1 described a run by its arguments alone.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    run: dict[str, Any]


def save_checkpoint(
    output_dir: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], run: dict[str, Any] | None = None
) -> Path:
    """Write the checkpoint of one step, in place of another of that step; returns its folder.

    Raises:
        CheckpointError: It cannot be written. All that were there are there still.
    """
    folder = output_dir / f"checkpoint-{step}"
    with replacing_folder(folder) as scratch:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, scratch / TENSORS)
        (scratch / STATE).write_text(json.dumps(state))
        files = {
            name: {"size": (scratch / name).stat().st_size, "sha256": sha256_of(scratch / name)}
            for name in (TENSORS, STATE)
        }
        manifest = {"format_version": FORMAT_VERSION, "step": step, "files": files, "run": run or {}}
        (scratch / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return folder


def load_checkpoint(folder: Path) -> Checkpoint:
    """What a checkpoint holds.

    Raises:
        CheckpointError: Where it is missing, of a newer format, or not what was written.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {MANIFEST}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        written_as = int(manifest["format_version"])
        run = None if written_as == 1 else dict(manifest["run"])
        written = {
            name: (manifest["files"][name]["size"], manifest["files"][name]["sha256"]) for name in (TENSORS, STATE)
        }
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged; resume from another checkpoint") from error
    if written_as > FORMAT_VERSION:
        raise CheckpointError(f"{folder} was written by a newer smat_peft (format {written_as}); use that to go on")
    for name, (size, sha256) in written.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size or sha256_of(file) != sha256:
            raise CheckpointError(f"{file} is not what was written; resume from another checkpoint")
    try:
        tensors, state = load_file(folder / TENSORS), dict(json.loads((folder / STATE).read_text()))
    except (OSError, SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder} holds other files than a checkpoint's; resume from another") from error
    return Checkpoint(tensors, state, {"arguments": state.get("arguments", {})} if run is None else run)


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
    """The checkpoints in a folder, oldest first; one that was being replaced where the new one is not there yet."""
    found: dict[int, Path] = {}
    for path in sorted(output_dir.glob("checkpoint-*"), reverse=True):
        if match := _NAME.fullmatch(path.name):
            found[int(match[1])] = path  # of two of a step, the shorter name comes last
    return [path for _, path in sorted(found.items())]


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was written after, by its name; -1 where that is not a checkpoint's."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def prune_checkpoints(output_dir: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints.

    Raises:
        CheckpointError: One cannot be removed.
    """
    for path in checkpoints(output_dir)[: -keep or None]:
        remove_folder(path)


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


def refuse_to_go_back(output_dir: Path, checkpoint: Path) -> None:
    """Refuse to resume from a checkpoint where newer ones, or those of another run, would be mixed with its own.

    Raises:
        CheckpointError: Says what to do instead.
    """
    if checkpoint.resolve().parent != output_dir.resolve():
        refuse_other_run(output_dir)
    newest = (checkpoints(output_dir) or [checkpoint])[-1]
    if step_of(newest) > step_of(checkpoint):
        raise CheckpointError(
            f"{newest} is newer than {checkpoint}; resume from it, remove it, or choose another --output_dir"
        )
