"""What is drawn for an episode: its domain, and Meta-Dataset's random ways and shots, or fixed ones (METHOD 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Literal

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from smat_peft.episodes.domain import MIN_CLASSES
from smat_peft.errors import ConfigurationError

DomainWeights = Literal["uniform", "size"] | Mapping[str, float]

MAX_WAYS = (
    50  # this and the next four: Meta-Dataset's EpisodeDescriptionConfig (Triantafillou et al. 2020, section 3.2)
)
MAX_QUERIES = 10
MAX_SUPPORT = 500
MAX_CLASS_CONTRIBUTION = 100  # a class counts for at most so many images when the support size is drawn
LOG_WEIGHT_RANGE = (float(np.log(0.5)), float(np.log(2.0)))  # how far shares of the support stray from class sizes


def domain_shares(weights: DomainWeights, names: Sequence[str], images: Sequence[int]) -> NDArray[np.float64] | None:
    """How often each domain is to be drawn.

    Args:
        weights: `"uniform"`, `"size"`, or a weight above 0 for each name.
        names: Names of the domains.
        images: How many images each has.

    Returns:
        Shares that add up to 1, `[len(names)]`; None where all are alike.

    Raises:
        ConfigurationError: The weights are not for these domains.
    """
    if weights == "uniform":
        return None
    if weights == "size":
        shares = np.array(images, dtype=np.float64)
    elif isinstance(weights, Mapping) and set(weights) == set(names) and all(map(_is_weight, weights.values())):
        shares = np.array([weights[name] for name in names], dtype=np.float64)
    else:
        raise ConfigurationError(
            "domain weights must be 'uniform', 'size' or a number above 0 for each domain, "
            f"{', '.join(names)}; got {weights!r}"
        )
    return shares / shares.sum()


def _is_weight(value: float) -> bool:
    return isfinite(value) and value > 0


def draw_domain(random: RandomState, available: int, shares: NDArray[np.float64] | None) -> int:
    """Number of an episode's domain, with these shares or uniformly."""
    return int(random.randint(available) if shares is None else random.choice(available, p=shares))


def draw_classes(
    random: RandomState, available: int, ways: int | None = None, max_ways: int = MAX_WAYS
) -> NDArray[np.int64]:
    """Draw the classes of an episode (METHOD 10, step 1).

    Args:
        random: Draws come from here: the number of classes unless fixed, then the classes.
        available: Number of classes to choose from.
        ways: Number of classes `C`; drawn uniformly from 5 to `min(max_ways, available)` if not given.
        max_ways: Largest number of classes to draw.

    Returns:
        Distinct class numbers in the order of their labels, `[C]`.
    """
    if ways is None:
        ways = int(random.randint(low=MIN_CLASSES, high=min(max_ways, available) + 1))
    return random.choice(available, ways, replace=False).astype(np.int64)


def draw_shots(
    random: RandomState,
    class_sizes: NDArray[np.int64],
    shots: int | None = None,
    queries: int = MAX_QUERIES,
    max_support: int = MAX_SUPPORT,
) -> tuple[NDArray[np.int64], int]:
    """Draw how many images of each class go into the support and the query (METHOD 10, steps 2 to 4).

    Args:
        random: Draws come from here: the size of the support, then the weights of the classes; none for fixed shots.
        class_sizes: Number of images of each class of the episode, `[C]`, each at least 2.
        shots: Support images of every class; drawn, and different from class to class, if not given.
        queries: Most query images a class.
        max_support: Most support images in all, where shots are drawn; at least `C`.

    Returns:
        Support images of each class `[C]`, and the number of query images, which is the same for all classes.
    """
    if shots is not None:
        return np.full(len(class_sizes), shots, dtype=np.int64), min(queries, int(class_sizes.min()) - shots)
    query = min(queries, int(class_sizes.min()) // 2)
    left = class_sizes - query
    share = random.uniform()
    support = min(max_support, int(np.floor(share * np.minimum(MAX_CLASS_CONTRIBUTION, left) + 1).sum()))
    weights = class_sizes * np.exp(random.uniform(*LOG_WEIGHT_RANGE, size=len(class_sizes)))
    drawn = np.floor(weights / weights.sum() * (support - len(class_sizes))).astype(np.int64) + 1
    return np.minimum(drawn, left), query
