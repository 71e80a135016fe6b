"""Episodes as a DataLoader's processes make them, and whether they are the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch.utils.data import DataLoader

from smat_peft.episodes.episode import Episode
from smat_peft.episodes.sampling import EpisodeSampler

# Processes are forked: a fresh one takes seconds.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")


def loaded(sampler: EpisodeSampler, numbers: Sequence[int], workers: int) -> list[Episode]:
    """The episodes of these numbers, from so many processes, or from this one for 0."""
    return list(
        DataLoader(
            sampler,  # type: ignore[arg-type]
            sampler=numbers,
            batch_size=None,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
        )
    )


def same(one: Episode, other: Episode) -> bool:
    """Whether two episodes have the same tensors, to the bit, domain and number."""
    tensors = ("support", "support_labels", "query", "query_labels")
    return (one.domain, one.index) == (other.domain, other.index) and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in tensors
    )
