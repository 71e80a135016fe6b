"""The episodes of one update after another, loaded ahead by other processes where asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.utils.data import DataLoader

from smat_peft.episodes.episode import Episode
from smat_peft.errors import DataError, SmatError
from smat_peft.meta_tuning.signals import leave_signals_to_parent


class Episodes(Protocol):
    """Training episodes by their number, such as an [`EpisodeSampler`]."""

    def __getitem__(self, index: int) -> Episode: ...


@dataclass(frozen=True)
class _ErrorsAsValues:
    """Episodes whose errors are handed over: raised in a loading process, they would arrive with its traceback."""

    episodes: Episodes

    def __getitem__(self, index: int) -> Episode | SmatError:
        try:
            return self.episodes[index]
        except SmatError as error:
            return error


def check_count(episodes: Episodes, count: int) -> None:
    """Check that there are as many training episodes as a run takes, where they can be counted.

    Raises:
        DataError: There are fewer.
    """
    if isinstance(episodes, Sized) and len(episodes) < count:
        raise DataError(
            f"there are {len(episodes)} training episodes, and this run takes {count} (max_steps x episodes_per_step); "
            "an EpisodeSampler has any number of them"
        )


def batches(
    episodes: Episodes, numbers: range, *, size: int, workers: int, device: torch.device
) -> Iterator[list[Episode]]:
    """The episodes of these numbers, `size` at a time, on `device`.

    Args:
        episodes: Episodes by number.
        numbers: Which, in this order however many processes load them.
        size: Episodes of a batch; a rest that makes no whole one is left out.
        workers: Processes that load ahead; 0: none.
        device: Where the tensors of the episodes go.

    Raises:
        SmatError: The error of an episode that cannot be made.
    """
    loader: DataLoader[Episode | SmatError] = DataLoader(
        _ErrorsAsValues(episodes),  # type: ignore[arg-type]
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        worker_init_fn=leave_signals_to_parent,
    )
    batch: list[Episode] = []
    for episode in loader:
        if isinstance(episode, SmatError):
            raise episode
        batch.append(episode.to(device))
        if len(batch) == size:
            yield batch
            batch = []
