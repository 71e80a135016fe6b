"""A disk on which one operation goes wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from smat_peft.meta_tuning import checkpoints

OPERATIONS = ("mkdir", "chmod", "fsync", "rename", "replace", "unlink", "rmdir")


@contextmanager
def disk(fault: Callable[[], None] = lambda: None, at: int = -1) -> Iterator[list[str]]:
    """Counts what is done to the disk within the block, in the list that it gives; operation `at` is a `fault`.

    A write counts twice: before anything is written, and when half of it is.
    """
    done: list[str] = []

    def reach(what: str) -> None:
        done.append(what)
        if len(done) == at + 1:
            fault()

    def plain(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def patched(*arguments: Any, **settings: Any) -> Any:
            reach(f"{name} {Path(arguments[0]).name if isinstance(arguments[0], str | Path) else ''}".strip())
            return operation(*arguments, **settings)

        return patched

    def write(path: Path, operation: Callable[[], Any]) -> Any:
        reach(f"write {path.name}")
        if len(done) == at:
            operation()
            with path.open("rb+") as file:
                file.truncate(path.stat().st_size // 2)
        reach(f"half of {path.name}")
        return operation()

    write_text, save_file = Path.write_text, checkpoints.save_file
    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, plain(name, getattr(os, name)))
        patch.setattr(Path, "write_text", lambda self, *a, **k: write(self, lambda: write_text(self, *a, **k)))
        patch.setattr(checkpoints, "save_file", lambda tensors, path: write(path, lambda: save_file(tensors, path)))
        yield done
