"""Whether files that are opened are closed again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def no_file_stays_open(folder: Path) -> Iterator[None]:
    """What is done within may open files, and has closed them at the end; looks by a file of its own in a folder."""
    free = _lowest_free_descriptor(folder)
    yield
    assert _lowest_free_descriptor(folder) == free


def _lowest_free_descriptor(folder: Path) -> int:
    with (folder / "probe").open("w") as file:
        return file.fileno()
