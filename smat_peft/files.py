"""Files that are whole or absent: written beside their place, flushed to disk, and renamed into it.

A crash leaves what was there before. What it leaves beside has a name that begins with `.partial-`; what it leaves of a
folder that was to be replaced, a name that ends in `.replaced`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from smat_peft.errors import CheckpointError

PARTIAL, REPLACED = ".partial-", ".replaced"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write a file, which takes the place of `path` if the block ends without an error.

    Its name ends as that of `path` does. The folder is made where there is none. Of a link, the file that it leads to
    is replaced.

    Raises:
        CheckpointError: It cannot be written; `path` is as it was.
    """
    path = path.resolve()
    partial = _beside(path)
    with _one_error(f"cannot write {path}"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _flush(partial)
            partial.replace(path)
            _flush(path.parent)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all: see [`replacing`]."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal; the file is not held in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def moving_into(folder: Path) -> Iterator[Path]:
    """A folder to write files to, which are moved into `folder` one by one if the block ends without an error.

    Raises:
        CheckpointError: They cannot be written.
    """
    with _one_error(f"cannot write to {folder}"), _scratch_folder(folder / "files") as scratch:
        yield scratch
        written = _flush_all(scratch)
        for path in written:
            target = folder / path.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        for parent in {folder / path.relative_to(scratch).parent for path in written}:
            _flush(parent)
        shutil.rmtree(scratch)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A folder to write files to, which takes the place of `path` as a whole if the block ends without an error.

    At any moment there is the folder that was at `path`, or the new one. Between two renames the old one is called
    `path` with `.replaced` after it.

    Raises:
        CheckpointError: It cannot be written; what was there is there still.
    """
    replaced = path.with_name(path.name + REPLACED)
    with _one_error(f"cannot write {path}"), _scratch_folder(path) as scratch:
        yield scratch
        _flush_all(scratch)
        if path.exists():
            if replaced.exists():
                remove_folder(replaced)
            path.rename(replaced)
        scratch.rename(path)
        _flush(path.parent)
        if replaced.exists():
            remove_folder(replaced)


def remove_folder(path: Path) -> None:
    """Remove a folder, so that a crash leaves all of it or nothing of that name.

    Raises:
        CheckpointError: It cannot be removed.
    """
    with _one_error(f"cannot remove {path}"):
        if path.is_symlink():
            path.unlink()
            return
        partial = _beside(path)
        shutil.rmtree(partial, ignore_errors=True)  # what of another that could not be removed
        path.rename(partial)
        shutil.rmtree(partial)


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that died have left in a folder: only for whoever knows that no other writes there.

    Raises:
        CheckpointError: It cannot be removed.
    """
    with _one_error(f"cannot remove what a run that died has left in {folder}"):
        for path in folder.glob(f"{PARTIAL}*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        for path in folder.glob(f"*{REPLACED}"):
            if path.with_name(path.name.removesuffix(REPLACED)).exists():
                remove_folder(path)


@contextmanager
def _scratch_folder(path: Path) -> Iterator[Path]:
    scratch = _beside(path)
    try:
        shutil.rmtree(scratch, ignore_errors=True)  # of a process that had the same number
        scratch.mkdir(parents=True)
        yield scratch
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


@contextmanager
def _one_error(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise CheckpointError(f"{what}: {reason}") from error


def _flush_all(folder: Path) -> list[Path]:
    """Flush a folder and all in it to disk; returns its files. They get the mode that the umask asks for."""
    below = sorted(folder.rglob("*"))
    files = [path for path in below if path.is_file()]
    mode = folder.stat().st_mode & 0o666
    for path in files:
        path.chmod(mode)  # safetensors makes files that their owner alone can read
        _flush(path)
    for path in [*(path for path in below if path.is_dir()), folder]:
        _flush(path)
    return files


def _beside(path: Path) -> Path:
    return path.with_name(f"{PARTIAL}{os.getpid()}-{path.name}")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
