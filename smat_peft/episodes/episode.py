"""One few-shot task: a labelled support set and a labelled query set."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from smat_peft.errors import DataError


@dataclass(frozen=True)
class Episode:
    """A few-shot task (METHOD 10).

    Attributes:
        support: Pixels of the support images, `[Ns, 3, H, W]`.
        support_labels: Their labels `0..C-1`, `[Ns]`; every class has at least one support image.
        query: Pixels of the query images, `[Nq, 3, H, W]`.
        query_labels: Their labels, `[Nq]`.
        domain: Name of the domain the images come from.
        index: The episode's number in its sampler: with the sampler's seed and split it says which episode this is.
    """

    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor
    domain: str = ""
    index: int = 0

    def __post_init__(self) -> None:
        for images, labels, part in (
            (self.support, self.support_labels, "support"),
            (self.query, self.query_labels, "query"),
        ):
            if len(images) != len(labels):
                raise DataError(f"{part}: {len(images)} images but {len(labels)} labels")
        known = torch.unique(self.support_labels)
        if len(known) < 2:
            raise DataError("the support holds a single class: there is nothing to tell apart; give at least two")
        if not torch.equal(known, torch.arange(len(known), device=known.device)):
            raise DataError(f"support labels must be 0..C-1 without gaps, got {known.tolist()}")
        missing = sorted(set(self.query_labels.tolist()) - set(known.tolist()))
        if missing:
            raise DataError(f"query labels {missing} have no support image")

    @property
    def ways(self) -> int:
        """Number of classes C."""
        return int(self.support_labels.max()) + 1

    def to(self, device: torch.device | str) -> Episode:
        """The same episode with its tensors on `device`."""
        return replace(
            self,
            support=self.support.to(device),
            support_labels=self.support_labels.to(device),
            query=self.query.to(device),
            query_labels=self.query_labels.to(device),
        )
