"""A lock on an output directory, so that two runs never write to it at once."""

from __future__ import annotations

import errno
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from smat_peft.errors import CheckpointError

logger = logging.getLogger(__name__)

LOCK = ".lock"
_held: set[Path] = set()  # by this process


@contextmanager
def output_lock(folder: Path) -> Iterator[None]:
    """Hold an output directory, made where there is none, for this process; within the block it may be taken again.

    The lock is the system's own on a file: it goes with its process, whichever way that ends.

    Raises:
        CheckpointError: Another process holds it, or nothing can be written there.
    """
    path = folder.resolve() / LOCK
    if path in _held:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written to: {error.strerror}") from error
    _held.add(path)
    try:
        yield
    finally:
        _held.remove(path)
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _acquire(path: Path) -> int:
    import fcntl  # not everywhere, and needed by training alone

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Not flock, which processes that load episodes would inherit, and keep after this one's death.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                holder = os.read(descriptor, 200).decode(errors="replace")
                os.close(descriptor)
                raise CheckpointError(
                    f"{path.parent} is in use by another run ({holder}); wait for it, or choose another folder"
                ) from error
            logger.warning("%s is not locked, its file system has no locks: %s", path.parent, error.strerror)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
                return descriptor
        os.close(descriptor)  # of a run that has just ended and taken its file away
