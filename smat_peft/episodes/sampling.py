"""Which images make up an episode, and the episode made of them (METHOD 10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from torch import Tensor

from smat_peft.episodes.cache import ImageCache
from smat_peft.episodes.domain import MIN_CLASSES, Augmentation, Domain, Split
from smat_peft.episodes.draws import (
    MAX_QUERIES,
    MAX_SUPPORT,
    MAX_WAYS,
    DomainWeights,
    domain_shares,
    draw_classes,
    draw_domain,
    draw_shots,
)
from smat_peft.episodes.episode import Episode
from smat_peft.episodes.images import ImageTransform
from smat_peft.errors import ConfigurationError, DataError

NOT_AUGMENTED: frozenset[Augmentation] = frozenset()
SPLIT_NUMBERS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2, "all": 3}  # part of every episode's seed


def can_serve(domain: Domain, split: Split, ways: int | None = None) -> bool:
    """Whether a domain has the 5 classes in a split that make an episode (fewer if fewer `ways` are asked for)."""
    return len(domain.classes(split)) >= min(MIN_CLASSES, ways or MIN_CLASSES)


@dataclass(frozen=True)
class EpisodeDescription:
    """Which images an episode is made of, without the images.

    Attributes:
        index: The episode's number in its sampler.
        domain: Name of the domain.
        classes: Names of the `C` classes, in the order of their labels.
        support: For each class the numbers of its support images, in `domain.images(split, class)`.
        query: For each class the numbers of its query images; never one of its support.
    """

    index: int
    domain: str
    classes: tuple[str, ...]
    support: tuple[tuple[int, ...], ...]
    query: tuple[tuple[int, ...], ...]


class EpisodeSampler:
    """Episodes by number, each a pure function of (seed, split, index), whoever asks and in whatever order.

    It works as a map-style dataset: `DataLoader(sampler, sampler=range(100), batch_size=None, num_workers=2)`.

    Args:
        domains: Where episodes come from; each time one is drawn from those with enough classes in the split.
        split: Whose classes to use; `"all"` for every class of a domain (out-of-distribution evaluation).
        ways: Number of classes, drawn anew for each episode if not given. Where they are drawn, a domain with a
            hierarchy gives classes that belong together.
        shots: Support images of each class, drawn anew for each class if not given.
        queries: Most query images of each class; fewer where a class has not so many.
        seed: Another seed gives other episodes.
        transform: Makes pixels of an image; if not given, all get the size of the first one, and values from -1 to 1.
        augment: Whether to use the training augmentations that a domain names; by default for the split `"train"` only.
        max_ways: Largest number of classes, where `ways` is drawn.
        max_support: Most support images, where `shots` is drawn.
        domain_weights: How often each domain is drawn: `"uniform"`, by `"size"` (its images in the split), or a weight
            for each name.
        cache: Keeps prepared images, to draw them again sooner; none are kept if not given.

    Attributes:
        domains: The domains that episodes are drawn from.

    Raises:
        DataError: No domain has enough classes, or a domain has fewer classes than `ways`, or a class fewer images
            than one query and `shots` support images.
        ConfigurationError: An argument is out of range.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        split: Split,
        ways: int | None = None,
        shots: int | None = None,
        queries: int = MAX_QUERIES,
        seed: int = 0,
        *,
        transform: ImageTransform | None = None,
        augment: bool | None = None,
        max_ways: int = MAX_WAYS,
        max_support: int = MAX_SUPPORT,
        domain_weights: DomainWeights = "uniform",
        cache: ImageCache | None = None,
    ) -> None:
        if split not in SPLIT_NUMBERS:
            raise ConfigurationError(f"unknown split {split!r}; splits are {', '.join(SPLIT_NUMBERS)}")
        for name, value, least in (
            ("ways", ways, 2),
            ("shots", shots, 1),
            ("queries", queries, 1),
            ("seed", seed, 0),
            ("max_ways", max_ways, MIN_CLASSES),
            ("max_support", max_support, (ways or max_ways) if shots is None else 1),
        ):
            if value is not None and value < least:
                of_each = (name, ways, shots) == ("max_support", None, None)
                why = ", an image of each of max_ways classes" if of_each else ""
                raise ConfigurationError(f"{name} must be at least {least}{why}, got {value}")
        self.domains = [domain for domain in domains if can_serve(domain, split, ways)]
        if not self.domains:
            found = ", ".join(f"{domain.name} {len(domain.classes(split))}" for domain in domains) or "no domain at all"
            raise DataError(
                f"no domain has the {min(MIN_CLASSES, ways or MIN_CLASSES)} classes in split {split!r} "
                f"that an episode needs; classes found: {found}"
            )
        self.split = split
        self.ways = ways
        self.shots = shots
        self.queries = queries
        self.seed = seed
        self.transform = transform or _first_image_size(self.domains[0])
        self.augment = split == "train" if augment is None else augment
        self.max_ways = max_ways
        self.max_support = max_support
        self.cache = cache or ImageCache(0)
        self._class_sizes = [self._count_images(domain) for domain in self.domains]
        images = [int(sizes.sum()) for sizes in self._class_sizes]
        self._shares = domain_shares(domain_weights, [domain.name for domain in self.domains], images)

    def __getitem__(self, index: int) -> Episode:
        """The episode with this number; only its own images are decoded."""
        random, domain, description = self._draw(index)
        augment = domain.augment if self.augment else NOT_AUGMENTED
        return load_episode(
            domain,
            self.split,
            description,
            transform=self.transform,
            cache=self.cache,
            augment=augment,
            random=random,
        )

    def describe(self, index: int) -> EpisodeDescription:
        """Which images the episode with this number is made of; decodes none."""
        return self._draw(index)[2]

    @property
    def largest(self) -> tuple[int, int]:
        """No episode has more support images, and none more query images."""
        ways = self.ways or min(self.max_ways, max(map(len, self._class_sizes)))
        return self.max_support if self.shots is None else ways * self.shots, ways * self.queries

    def _count_images(self, domain: Domain) -> NDArray[np.int64]:
        names = domain.classes(self.split)
        if self.ways is not None and self.ways > len(names):
            raise DataError(
                f"domain {domain.name!r} has {len(names)} classes in split {self.split!r}, "
                f"too few for {self.ways} ways; ask for fewer ways or leave the domain out"
            )
        sizes = np.array([len(domain.images(self.split, name)) for name in names], dtype=np.int64)
        needed = (self.shots or 1) + 1
        if sizes.min() < needed:
            scarce = int(sizes.argmin())
            raise DataError(
                f"domain {domain.name!r}: class {names[scarce]!r} has {sizes[scarce]} images, too few for "
                f"{needed - 1} in the support and one in the query; give it more images or leave it out"
            )
        return sizes

    def _draw(self, index: int) -> tuple[RandomState, Domain, EpisodeDescription]:
        if index < 0:
            raise IndexError(f"episodes are numbered from 0, got {index}")
        seeds = np.random.SeedSequence([self.seed, SPLIT_NUMBERS[self.split], index])
        random = RandomState(np.random.MT19937(seeds))
        number = draw_domain(random, len(self.domains), self._shares)
        domain, sizes = self.domains[number], self._class_sizes[number]
        hierarchy = None if self.ways else domain.hierarchies.get(self.split)
        if hierarchy is None:
            classes = draw_classes(random, len(sizes), self.ways, self.max_ways)
        else:
            classes = hierarchy.draw(random, self.max_ways)
        shots, query_count = draw_shots(random, sizes[classes], self.shots, self.queries, self.max_support)
        support, query = [], []
        for class_number, count in zip(classes, shots, strict=True):
            images = random.permutation(sizes[class_number]).tolist()
            support.append(tuple(images[:count]))
            query.append(tuple(images[count : count + query_count]))
        names = domain.classes(self.split)
        chosen = tuple(names[class_number] for class_number in classes)
        return random, domain, EpisodeDescription(index, domain.name, chosen, tuple(support), tuple(query))


def load_episode(
    domain: Domain,
    split: Split,
    description: EpisodeDescription,
    *,
    transform: ImageTransform,
    cache: ImageCache,
    augment: frozenset[Augmentation] = NOT_AUGMENTED,
    random: RandomState | None = None,
) -> Episode:
    """The episode of a description; only its own images are decoded.

    Args:
        domain: Where the images are.
        split: Whose classes the description is of.
        description: Which images.
        transform: Makes pixels of an image.
        cache: Keeps prepared images.
        augment: What may be changed in the images at random.
        random: Where those changes are drawn from, first for the support.
    """
    random = random or RandomState(0)

    def pixels(numbers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        images = []
        for name, of_class in zip(description.classes, numbers, strict=True):
            source = domain.images(split, name)
            for number in of_class:
                images.append(transform.finish(cache.prepare(source, number, transform, augment), augment, random))
        counts = torch.tensor([len(of_class) for of_class in numbers])
        return torch.stack(images), torch.repeat_interleave(torch.arange(len(counts)), counts)

    support, support_labels = pixels(description.support)
    query, query_labels = pixels(description.query)
    return Episode(support, support_labels, query, query_labels, domain.name, description.index)


def _first_image_size(domain: Domain) -> ImageTransform:
    first = next(iter(domain.class_images.values()))[0]
    size = (first.height, first.width)
    return ImageTransform(size, resize=size)
