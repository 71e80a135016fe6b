"""Which images the episodes of an evaluation are made of, as a file, so that others can run the very same ones.

A line of JSON for each episode: its domain, split and number, its classes in the order of their labels, and for each
class the images of its support and of its query. An image is named by its place within its class and, where images are
files, by its path below the domain's folder as well, which then is what counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from smat_peft.episodes.cache import ImageCache
from smat_peft.episodes.domain import Domain, Split
from smat_peft.episodes.episode import Episode
from smat_peft.episodes.folders import ImageFiles
from smat_peft.episodes.images import ImageTransform
from smat_peft.episodes.sampling import EpisodeDescription, EpisodeSampler, load_episode
from smat_peft.errors import DataError
from smat_peft.files import replacing

PARTS = ("support", "query")
FILES = "_files"  # after the name of a part
MOST_LISTED = 3


class ListedEpisodes:
    """Episodes of one domain by number, made of images that were chosen before.

    Args:
        domain: The domain.
        split: Whose classes they are of.
        descriptions: Which images.
        transform: Makes pixels of an image.
        cache: Keeps prepared images.
    """

    def __init__(
        self,
        domain: Domain,
        split: Split,
        descriptions: Iterable[EpisodeDescription],
        transform: ImageTransform,
        cache: ImageCache | None = None,
    ) -> None:
        self.domain = domain
        self.split = split
        self.descriptions = {description.index: description for description in descriptions}
        self.transform = transform
        self.cache = cache or ImageCache(0)

    def __len__(self) -> int:
        return len(self.descriptions)

    def __getitem__(self, index: int) -> Episode:
        return load_episode(
            self.domain, self.split, self.descriptions[index], transform=self.transform, cache=self.cache
        )


def write_manifest(path: str | Path, samplers: Iterable[EpisodeSampler], episodes: int) -> None:
    """Write the first `episodes` episodes of each sampler, each of which has one domain.

    Raises:
        CheckpointError: The file cannot be written.
    """
    with replacing(Path(path)) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for sampler in samplers:
            for index in range(episodes):
                line = _line(sampler.domains[0], sampler.split, sampler.describe(index))
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_manifest(path: str | Path, domains: Mapping[str, tuple[Domain, Split]]) -> dict[str, list[EpisodeDescription]]:
    """The episodes of each of these domains; those of others are passed over.

    Raises:
        DataError: The file cannot be read, an image or a class is missing, a domain has no episode, or its episodes
            are of another split.
    """
    found: dict[str, list[EpisodeDescription]] = {name: [] for name in domains}

    @cache
    def places(domain_name: str, class_name: str) -> dict[int | str, int]:
        domain, split = domains[domain_name]
        return _places(class_name, domain.images(split, class_name))

    try:
        lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        for line in lines:
            if line["domain"] in domains:
                domain, split = domains[line["domain"]]
                if line["split"] != split:
                    raise DataError(
                        f"episode manifest {path}: its episodes of {domain.name!r} are of split {line['split']!r}, "
                        f"and {split!r} is asked for"
                    )
                found[domain.name].append(_description(path, domain, split, line, partial(places, domain.name)))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"episode manifest {path} cannot be read: {type(error).__name__}: {error}") from error
    empty = [name for name, episodes in found.items() if not episodes]
    if empty:
        raise DataError(f"episode manifest {path} has no episodes of {', '.join(empty)}")
    for name, episodes in found.items():
        numbers = [episode.index for episode in episodes]
        if len(set(numbers)) < len(numbers):
            raise DataError(f"episode manifest {path}: several episodes of {name!r} have one number")
    return found


def _line(domain: Domain, split: Split, description: EpisodeDescription) -> dict[str, Any]:
    line: dict[str, Any] = {
        "domain": domain.name,
        "split": split,
        "index": description.index,
        "classes": description.classes,
        "support": description.support,
        "query": description.query,
    }
    for part in PARTS:
        files = [_files(domain.images(split, name)) for name in description.classes]
        if all(files):
            line[part + FILES] = [
                [f"{name}/{of_class[number]}" for number in numbers]
                for name, of_class, numbers in zip(description.classes, files, line[part], strict=True)
            ]
    return line


def _description(
    path: str | Path,
    domain: Domain,
    split: Split,
    line: dict[str, Any],
    places: Callable[[str], Mapping[int | str, int]],
) -> EpisodeDescription:
    classes = tuple(line["classes"])
    missing = [f"class {name!r}" for name in classes if name not in domain.classes(split)]
    parts = {}
    if not missing:
        for part in PARTS:
            named = line.get(part + FILES, line[part])
            parts[part] = tuple(
                tuple(_place(places(name), name, image, missing) for image in of_class)
                for name, of_class in zip(classes, named, strict=True)
            )
    if missing:
        listed = ", ".join(missing[:MOST_LISTED]) + (" and others" if len(missing) > MOST_LISTED else "")
        raise DataError(
            f"episode manifest {path}: domain {domain.name!r} lacks {listed}; "
            "give the images that the manifest was written for"
        )
    support, query, index = parts["support"], parts["query"], line["index"]
    leaked = any(set(shown) & set(asked) for shown, asked in zip(support, query, strict=True))
    if leaked or len(set(classes)) < len(classes) or not all(support) or not any(query) or type(index) is not int:
        raise DataError(
            f"episode manifest {path}: episode {index!r} of {domain.name!r} is none: it needs a whole number, "
            "different classes, support images of each, and query images that are not in the support"
        )
    return EpisodeDescription(index, domain.name, classes, support, query)


def _places(name: str, images: Sequence[Image.Image]) -> dict[int | str, int]:
    """Places of a class's images, by themselves and by the names of their files."""
    numbers: dict[int | str, int] = {number: number for number in range(len(images))}
    return numbers | {f"{name}/{file}": number for number, file in enumerate(_files(images))}


def _place(places: Mapping[int | str, int], name: str, image: int | str, missing: list[str]) -> int:
    """The place of an image within its class, or -1 and a word about it in `missing`."""
    place = places.get(image, -1)
    if place < 0:
        missing.append(f"image {image}" if isinstance(image, str) else f"image {image} of class {name!r}")
    return place


def _files(images: Sequence[Image.Image]) -> list[str]:
    """Names of a class's files; none where its images are not files."""
    return [place.name for place in images.places] if isinstance(images, ImageFiles) else []
