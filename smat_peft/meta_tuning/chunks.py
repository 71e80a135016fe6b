"""Images that go through the backbone in chunks, and what is done where memory runs out all the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from smat_peft.episodes.episode import Episode
from smat_peft.errors import SmatError
from smat_peft.tuner.features import in_chunks

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

SMALLER = 4  # times smaller chunks in the second try


class Chunks:
    """Takes images through a backbone so many at a time.

    Attributes:
        size: Images of a chunk; None: all at once.
    """

    def __init__(self, size: int | None) -> None:
        self.size = size

    def features(self, backbone: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Features `[N, D]` of images: see [`in_chunks`]."""
        return in_chunks(backbone, images, self.size)

    def within_memory(self, compute: Callable[[], Result], episode: Episode) -> Result:
        """What `compute` returns; where memory runs out, from a second try in smaller chunks.

        Raises:
            SmatError: Memory runs out again; names the episode.
        """
        try:
            return compute()
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
        # Outside of the handler: the error holds on to all that was computed.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        whole, before = len(episode.support) + len(episode.query), self.size
        self.size = max(1, min(whole, before or whole) // SMALLER)
        name = f"episode {episode.domain} {episode.index} of {len(episode.support)} + {len(episode.query)} images"
        logger.warning("%s does not fit in memory: trying again with %d images at a time", name, self.size)
        try:
            return compute()
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            raise SmatError(
                f"{name} does not fit in memory, not even {self.size} at a time; lower --episodes_per_merge, "
                "--max_batch_size, or how large episodes may be (--max_ways, --max_support)"
            ) from error
        finally:
            self.size = before


def _is_out_of_memory(error: Exception) -> bool:
    # torch has a class of its own for accelerators alone.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
