"""Domains of images that lie in files and are read anew each time they are drawn."""

from __future__ import annotations

import copy
import json
import unicodedata
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, overload

from PIL import Image

from smat_peft.episodes.domain import EVERY_AUGMENTATION, Augmentation, Domain, Hierarchy
from smat_peft.errors import DataError

OnBadImage = Literal["error", "skip"]

MIN_IMAGES = 2  # one for the support, one for the query


class StoredImages(Sequence[Image.Image], ABC):
    """Images that are read each time they are indexed, so that none stays in memory and no file open for it.

    Attributes:
        places: Where each image is, in whatever terms the kind of source has.
    """

    def __init__(self, places: Sequence[Any]) -> None:
        self.places = places

    @abstractmethod
    def read(self, place: Any) -> Image.Image:
        """The image at a place, in RGB; a DataError that names it where it cannot be read."""

    @abstractmethod
    def name(self, place: Any) -> str:
        """What messages call the image at a place."""

    def at(self, places: Sequence[Any]) -> Self:
        """The same kind of images at other places."""
        images = copy.copy(self)
        images.places = places
        return images

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Image.Image | Self:
        if isinstance(index, slice):
            return self.at(self.places[index])
        return self.read(self.places[index])


@dataclass(frozen=True)
class StoredSettings:
    """How to make a domain of stored images.

    Attributes:
        splits_file: JSON `{"train": [names], "validation": [names], "test": [names]}`; the source's own splits, else
            a fixed shuffle of the names, if not given.
        augment: The training augmentations that leave an image in its class.
        on_bad_image: `"error"`: an image that cannot be read is an error when it is drawn. `"skip"`: all images are
            read once now, and those that cannot be are left out with a warning that lists them.
    """

    splits_file: Path | None = None
    augment: frozenset[Augmentation] = EVERY_AUGMENTATION
    on_bad_image: OnBadImage = "error"

    def domain(
        self,
        name: str,
        origin: str,
        class_images: Mapping[str, StoredImages],
        splits: Mapping[str, Sequence[str]] | None = None,
        hierarchies: Mapping[str, Hierarchy] | None = None,
    ) -> Domain:
        """The domain of these images; messages say that they come from `origin`.

        Raises:
            DataError: A class has fewer than 2 images, two have names that look the same, or the splits do not fit the
                classes.
        """
        _check_names(origin, class_images)
        left_out: list[str] = []
        if self.on_bad_image == "skip":
            class_images = _without_bad_images(origin, class_images, left_out)
        for class_name, images in class_images.items():
            if len(images) < MIN_IMAGES:
                raise DataError(
                    f"{origin}: class {class_name!r} has {len(images)} usable images; "
                    f"it takes at least {MIN_IMAGES}, one for the support and one for the query"
                )
        if self.splits_file is not None:
            splits = read_splits(self.splits_file)
        try:
            return Domain(
                name, class_images, splits or {}, self.augment, hierarchies or {}, origin, left_out=tuple(left_out)
            )
        except DataError as error:
            raise DataError(f"{self.splits_file or origin}: {error}") from error


def read_json(path: Path, what: str) -> Any:
    """What a JSON file holds; a DataError that names `what` it is where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{what} {path} cannot be read as JSON: {error}") from error


def read_splits(path: Path) -> dict[str, list[str]]:
    """Class names by split from a JSON file.

    Raises:
        DataError: The file cannot be read or holds something else.
    """
    splits = read_json(path, "splits file")
    if isinstance(splits, dict) and splits and all(map(_is_list_of_names, splits.values())):
        return splits
    raise DataError(
        f'splits file {path} must hold {{"train": [names], "validation": [names], "test": [names]}} '
        "with the names of classes"
    )


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _check_names(origin: str, names: Iterable[str]) -> None:
    """Refuse names that are one in another Unicode form; warn of those that are one in another case."""
    forms: dict[str, str] = {}
    cases: dict[str, list[str]] = {}
    for name in names:
        form = unicodedata.normalize("NFC", name)
        if form in forms:
            raise DataError(
                f"{origin}: classes {forms[form]!a} and {name!a} look the same, in two Unicode forms; "
                "put them together or rename one"
            )
        forms[form] = name
        cases.setdefault(form.casefold(), []).append(name)
    if alike := [" and ".join(map(repr, of_case)) for of_case in cases.values() if len(of_case) > 1]:
        others = f" ({len(alike) - 1} more of the kind)" if len(alike) > 1 else ""
        warnings.warn(
            f"{origin}: classes {alike[0]} differ in upper and lower case alone{others}; put them together if they are "
            "one",
            stacklevel=3,
        )


def _without_bad_images(
    origin: str, class_images: Mapping[str, StoredImages], bad: list[str]
) -> dict[str, StoredImages]:
    """The images that can be read; the names of the others are added to `bad`."""

    def is_readable(images: StoredImages, place: Any) -> bool:
        try:
            images.read(place)
        except DataError:
            bad.append(images.name(place))
            return False
        return True

    usable = {
        name: images.at([place for place in images.places if is_readable(images, place)])
        for name, images in class_images.items()
    }
    if bad:
        listed = "\n".join(bad)
        warnings.warn(f"{origin}: {len(bad)} images cannot be read and are left out:\n{listed}", stacklevel=2)
    return usable
