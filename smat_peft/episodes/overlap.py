"""What training domains share with domains that should be new: names of classes, and images that are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, starmap

from PIL import Image

from smat_peft.episodes.domain import Domain, Split
from smat_peft.episodes.stored import StoredImages
from smat_peft.errors import DataError

TRAINING_SPLITS: tuple[Split, ...] = ("train", "validation")
IMAGES_COMPARED = 5  # of each class: as a rule it is whole classes that are in two data sets
EXAMPLES = 3  # in a sentence


def shared_content(training: Sequence[Domain], unseen: Sequence[Domain]) -> list[str]:
    """One sentence for each unseen domain and each thing that it shares with training and validation classes.

    Names are compared without regard to case and to `_` and `-`; those that are mere numbers say nothing and are passed
    over. Of the images that are stored in files the first 5 of each class are compared, pixel by pixel; reading them
    takes a few milliseconds a class. The built-in suite draws its images, each another.
    """
    classes = [(domain, name) for domain in training for split in TRAINING_SPLITS for name in domain.classes(split)]
    learned = {_plain_name(name): f"{domain.name}/{name}" for domain, name in classes}
    seen: dict[bytes, str] | None = None
    sentences = []
    for domain in unseen:
        names = [name for name in domain.classes("all") if _plain_name(name) in learned and not name.isdecimal()]
        if names:
            examples = [f"{name} ({learned[_plain_name(name)]})" for name in names]
            sentences.append(
                f"{domain.name} is named as not trained on, but {len(names)} of its classes have names of training "
                f"classes: {_listed(examples)}."
            )
        own = [(place, digest) for name in domain.classes("all") for place, digest in _digests(domain, name)]
        if own and seen is None:
            seen = {digest: place for place, digest in chain.from_iterable(starmap(_digests, classes))}
        places = [f"{place} ({seen[digest]})" for place, digest in own if seen and digest in seen]
        if places:
            sentences.append(
                f"{domain.name} is named as not trained on, but holds images that training has, too: {_listed(places)}."
            )
    return sentences


def _plain_name(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _digests(domain: Domain, name: str) -> Iterator[tuple[str, bytes]]:
    """Where the first images of a class are, and what tells them from others; none of a class that is drawn."""
    images = domain.images("all", name)
    for number in range(min(len(images), IMAGES_COMPARED) if isinstance(images, StoredImages) else 0):
        with suppress(DataError):  # is reported where it is drawn
            yield f"{domain.name}/{name} {number}", _digest(images[number])


def _digest(image: Image.Image) -> bytes:
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - EXAMPLES
    return ", ".join(texts[:EXAMPLES]) + (f" and {more} more" if more > 0 else "")
