"""The folders that `classify` is given: examples in class folders, and images to label."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from smat_peft.episodes.folders import sub_folders
from smat_peft.episodes.image_files import PLUGINS, SUFFIXES, is_image_file, open_image
from smat_peft.errors import DataError
from smat_peft.files import sha256_of

SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # hidden where they come from


@dataclass(frozen=True)
class FolderImages:
    """Images of a folder.

    Attributes:
        folder: The folder.
        paths: The images, `N`.
        classes: The names of the class folders that they lie in, `N`; none where there are no class folders.
    """

    folder: Path
    paths: list[Path]
    classes: list[str]

    @property
    def names(self) -> list[str]:
        """The images by their paths in the folder."""
        return [_printable(str(path.relative_to(self.folder))) for path in self.paths]


def read_examples(folder: Path, skip: bool) -> FolderImages:
    """The images of a folder of class folders.

    Of copies of a file in one class all but the first are left out: an example that is left out is not to be known by
    its copy. They are named on stderr, as are copies in different classes.

    Args:
        folder: The folder.
        skip: Whether to leave out images that cannot be read, and say so on stderr.

    Raises:
        DataError: It is not such a folder, has fewer than two classes, or a class without a usable image.
    """
    classes = _class_folders(folder)
    if len(classes) < 2:
        raise DataError(
            f"{folder} holds {len(classes)} class folders; put the examples of each class into a folder of the "
            "class's name, two classes at least"
        )
    _tell_passed_over(folder, [path for paths in classes.values() for path in paths])
    return _without_copies(_of_classes(folder, classes, skip))


def read_queries(folder: Path, known: Sequence[str], skip: bool) -> FolderImages:
    """The images of a folder, or of its class folders where it has some.

    Args:
        folder: The folder.
        known: Classes that there are examples of.
        skip: Whether to leave out images that cannot be read, and say so on stderr.

    Raises:
        DataError: It is not such a folder, holds no usable image, or a class that is not known.
    """
    classes = {name: paths for name, paths in _class_folders(folder).items() if paths}
    flat = _images(folder)
    if flat and classes:
        raise DataError(f"{folder} holds both images and folders of images; give a folder of one or the other")
    _tell_passed_over(folder, [*flat, *(path for paths in classes.values() for path in paths)])
    if not classes:
        return FolderImages(folder, _usable(flat, skip, str(folder)), [])
    unknown = sorted(set(classes) - set(known))
    if unknown:
        named = ", ".join(sorted(set(known)))
        raise DataError(f"{folder}: class {unknown[0]!r} has no examples; there are examples of {named}")
    return _of_classes(folder, classes, skip)


def _without_copies(examples: FolderImages) -> FolderImages:
    first: dict[str, int] = {}
    copies = set()
    for number, path in enumerate(examples.paths):
        earlier = first.setdefault(sha256_of(path), number)
        if earlier == number:
            continue
        same = f"{examples.names[number]} is the same file as {examples.names[earlier]}"
        if examples.classes[earlier] == examples.classes[number]:
            copies.add(number)
            print(f"left out: {same}", file=sys.stderr)
        else:
            print(f"warning: {same}, of another class", file=sys.stderr)
    kept = [number for number in range(len(examples.paths)) if number not in copies]
    return FolderImages(
        examples.folder, [examples.paths[number] for number in kept], [examples.classes[number] for number in kept]
    )


def _printable(name: str) -> str:
    """A name as it can be shown and written: bytes that are no text, and what would move the cursor, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _of_classes(folder: Path, classes: dict[str, list[Path]], skip: bool) -> FolderImages:
    usable = {name: _usable(paths, skip, f"class folder {folder / name}") for name, paths in classes.items()}
    return FolderImages(
        folder,
        [path for paths in usable.values() for path in paths],
        [name for name, paths in usable.items() for _ in paths],
    )


def _class_folders(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    return {_printable(entry.name): _images(entry) for entry in sub_folders(folder)}


def _images(folder: Path) -> list[Path]:
    return [entry for entry in _visible(folder) if is_image_file(entry)]


def _visible(folder: Path) -> list[Path]:
    entries = sorted(folder.iterdir())
    return [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in SYSTEM_FILES]


def _tell_passed_over(folder: Path, images: Sequence[Path]) -> None:
    """Say on stderr what else lies in a folder and its class folders, a line for each reason."""
    within = sub_folders(folder)
    read = {*within, *images}
    others = [entry for place in (folder, *within) for entry in _visible(place) if entry not in read]
    kinds = {
        "images beside class folders": [entry for entry in others if is_image_file(entry)],
        "folders within folders": [entry for entry in others if entry.is_dir()],
        "files of other formats": [entry for entry in others if entry.is_file() and not is_image_file(entry)],
    }
    for kind, entries in kinds.items():
        if entries:
            example = _printable(str(entries[0].relative_to(folder)))
            print(f"passed over in {folder}: {kind} ({len(entries)}, such as {example})", file=sys.stderr)


def _usable(paths: Sequence[Path], skip: bool, where: str) -> list[Path]:
    for path in paths:
        if path.suffix.lower() in PLUGINS and not skip:
            open_image(path)  # a package that is missing is said before any work
            break
    usable = [path for path in paths if _is_readable(path)] if skip else list(paths)
    if not usable:
        raise DataError(f"{where} holds no images that can be read ({', '.join(sorted(SUFFIXES))})")
    return usable


def _is_readable(path: Path) -> bool:
    try:
        open_image(path)
    except DataError as error:
        print(f"left out: {error}", file=sys.stderr)
        return False
    return True
