"""A fixed list of episodes, the same number from each domain, made as they are indexed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smat_peft.episodes.domain import Domain, Split
from smat_peft.episodes.episode import Episode
from smat_peft.episodes.sampling import EpisodeSampler, can_serve


class FixedEpisodes(Sequence[Episode]):
    """The first `count` episodes of each domain in turn, for validation.

    Args:
        domains: Domains; those without enough classes in the split are left out.
        split: Whose classes to use.
        count: Episodes of each domain.
        ways: Number of classes, drawn anew for each episode if not given.
        settings: Further arguments of [`EpisodeSampler`].
    """

    def __init__(
        self, domains: Sequence[Domain], split: Split, count: int, ways: int | None = None, **settings: Any
    ) -> None:
        usable = [domain for domain in domains if can_serve(domain, split, ways)]
        self.samplers = [EpisodeSampler([domain], split, ways, **settings) for domain in usable]
        self.episodes_each = count

    def __len__(self) -> int:
        return self.episodes_each * len(self.samplers)

    def __getitem__(self, index: int) -> Episode:  # type: ignore[override] # no slices
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} episodes, asked for number {index}")
        return self.samplers[index % len(self.samplers)][index // len(self.samplers)]
