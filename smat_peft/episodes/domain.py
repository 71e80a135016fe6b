"""A domain: named classes of images from one source, split once into training, validation and test classes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from PIL import Image

from smat_peft.errors import DataError

Split = Literal["train", "validation", "test", "all"]
Augmentation = Literal["crop", "colour", "mirror"]

EVERY_AUGMENTATION: frozenset[Augmentation] = frozenset(("crop", "colour", "mirror"))

SPLIT_SHARES = {"train": 0.70, "validation": 0.15}  # the rest is test
MIN_CLASSES = 5  # fewer classes than this in a split make no episode (METHOD 10: min_ways)


def split_classes(names: Sequence[str]) -> dict[str, list[str]]:
    """Split class names 70/15/15, in an order that depends on the names alone and not on where they were read.

    Returns:
        `{"train": [...], "validation": [...], "test": [...]}`; each class is in exactly one of them.
    """
    ordered = sorted(names, key=lambda name: (hashlib.sha256(name.encode()).hexdigest(), name))
    first = round(SPLIT_SHARES["train"] * len(ordered))
    second = round((SPLIT_SHARES["train"] + SPLIT_SHARES["validation"]) * len(ordered))
    return {"train": ordered[:first], "validation": ordered[first:second], "test": ordered[second:]}


class Hierarchy(Protocol):
    """How the classes of a split belong together, for episodes of related classes."""

    def draw(self, random: RandomState, max_ways: int) -> NDArray[np.int64]:
        """Numbers of an episode's classes in the split, in the order of their labels: `[C]`, `C` at most `max_ways`."""


@dataclass(frozen=True)
class Domain:
    """Classes of images from one source.

    Attributes:
        name: What tables call it.
        class_images: For each class its images, decoded when they are indexed.
        splits: Class names by split; made by [`split_classes`] unless given.
        augment: The training augmentations of METHOD 10 that leave an image in its class (a mirrored letter is another
            drawing, so scripts leave `"mirror"` out).
        hierarchies: By split, where its classes belong together: episodes whose ways vary draw their classes so.
        origin: Where it comes from, as in its specification, `hub:NAME` among others; for messages and model cards.
        left_out: What of it could not be read and was left out, as messages call it.
    """

    name: str
    class_images: Mapping[str, Sequence[Image.Image]]
    splits: Mapping[str, Sequence[str]] = field(default_factory=dict)
    augment: frozenset[Augmentation] = EVERY_AUGMENTATION
    hierarchies: Mapping[str, Hierarchy] = field(default_factory=dict)
    origin: str = ""
    left_out: tuple[str, ...] = ()
    _split_of: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.class_images:
            raise DataError(f"domain {self.name!r} has no classes")
        if not self.splits:
            object.__setattr__(self, "splits", split_classes(list(self.class_images)))
        split_of: dict[str, str] = {}
        for split, names in self.splits.items():
            if split not in ("train", "validation", "test"):
                raise DataError(f"domain {self.name!r}: unknown split {split!r}; splits are train, validation, test")
            for name in names:
                if name not in self.class_images:
                    raise DataError(f"domain {self.name!r}: split {split!r} names class {name!r}, which has no images")
                if name in split_of:
                    raise DataError(f"domain {self.name!r}: class {name!r} is in both {split_of[name]!r} and {split!r}")
                split_of[name] = split
        object.__setattr__(self, "_split_of", split_of)

    def classes(self, split: Split) -> list[str]:
        """Names of the classes of a split, `"all"` for every class of the domain."""
        if split == "all":
            return list(self.class_images)
        return list(self.splits.get(split, ()))

    def images(self, split: Split, class_name: str) -> Sequence[Image.Image]:
        """The images of one class of a split, decoded one by one as they are indexed."""
        if class_name not in self.class_images or split not in ("all", self._split_of.get(class_name)):
            raise DataError(f"domain {self.name!r} has no class {class_name!r} in split {split!r}")
        return self.class_images[class_name]
