"""Episodes of related classes: characters of one alphabet, species under one node of a graph (METHOD 10, step 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from smat_peft.episodes.draws import draw_classes


@dataclass(frozen=True)
class Bilevel:
    """Classes in groups, such as the characters of Omniglot's alphabets: an episode's are drawn from one group.

    Attributes:
        groups: The numbers of each group's classes; each has at least 5.
    """

    groups: Sequence[Sequence[int]]

    def draw(self, random: RandomState, max_ways: int) -> NDArray[np.int64]:
        """A group, how many of its classes, and which, each drawn uniformly; see [`Hierarchy`]."""
        group = np.array(self.groups[random.randint(len(self.groups))], dtype=np.int64)
        return group[draw_classes(random, len(group), max_ways=max_ways)]


@dataclass(frozen=True)
class Ontology:
    """Classes that are the leaves of a graph, such as ImageNet's: an episode's are all that lie under one node.

    Attributes:
        spans: For each node that may be drawn, the numbers of the classes under it; at least 5.
    """

    spans: Sequence[Sequence[int]]

    def draw(self, random: RandomState, max_ways: int) -> NDArray[np.int64]:
        """The classes under a node drawn uniformly, or `max_ways` of them where there are more; see [`Hierarchy`]."""
        span = np.array(self.spans[random.randint(len(self.spans))], dtype=np.int64)
        return span if len(span) <= max_ways else random.choice(span, max_ways, replace=False)
