"""A folder of class folders of images as a domain."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, overload

from PIL import Image, ImageOps

from smat_peft.episodes.domain import EVERY_AUGMENTATION, Augmentation, Domain
from smat_peft.errors import DataError

OnBadImage = Literal["error", "skip"]

# Pillow knows more formats; those left out run other programs (EPS) or hold no picture of their own (stubs).
FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
}
SPLITS_FILE = "splits.json"
MIN_IMAGES = 2  # one for the support, one for the query


class ImageFiles(Sequence[Image.Image]):
    """Images that are read from their files each time they are indexed; no file stays open.

    Args:
        paths: The files.

    Raises:
        DataError: A file that is indexed cannot be read as an image.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> ImageFiles: ...
    def __getitem__(self, index: int | slice) -> Image.Image | ImageFiles:
        if isinstance(index, slice):
            return ImageFiles(self.paths[index])
        return read_image(self.paths[index])


def read_image(path: Path) -> Image.Image:
    """An image in RGB, turned as its EXIF entry says.

    Raises:
        DataError: The file is not an image, is damaged, or is in none of [`FORMATS`].
    """
    try:
        with Image.open(path, formats=sorted(set(FORMATS.values()))) as file:
            ImageOps.exif_transpose(file, in_place=True)
            # Straight to RGB, Pillow warns that a palette's transparency is lost.
            image = file.convert("RGBA") if file.mode == "P" else file
            return image.convert("RGB")  # a copy, which holds no file
    except Exception as error:  # what Pillow raises depends on where a damaged file breaks off
        raise DataError(
            f"{path} cannot be read as an image ({type(error).__name__}: {error}); "
            "mend it, take it away, or leave such files out with on_bad_image='skip'"
        ) from error


def read_image_folder(
    folder: Path,
    splits_file: Path | None = None,
    augment: frozenset[Augmentation] = EVERY_AUGMENTATION,
    on_bad_image: OnBadImage = "error",
) -> Domain:
    """A folder with one folder of images for each class, as a domain of the folder's name.

    Args:
        folder: The folder. Hidden files and files that are not images are passed over.
        splits_file: JSON `{"train": [names], "validation": [names], "test": [names]}`; the folder's own `splits.json`
            if there is one, else classes are split by their names.
        augment: The training augmentations that leave an image in its class.
        on_bad_image: `"error"`: an image that cannot be read is an error when it is drawn. `"skip"`: all images are
            read once now, and those that cannot be are left out with a warning that lists them.

    Raises:
        DataError: The folder is missing or empty, is arranged otherwise, holds a class with fewer than 2 images or a
            link that leads out of it, or the splits file does not fit it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give a folder that holds one folder of images for each class")
    root = folder.resolve()
    entries = _visible(folder, root)
    class_folders = [entry for entry in entries if entry.is_dir()]
    if not class_folders:
        found = "images but no class folders" if any(map(_is_image, entries)) else "no class folders"
        raise DataError(f"{folder} holds {found}; put the images of each class into a folder of the class's name")
    images = {entry.name: _images_of_class(entry, root) for entry in class_folders}
    if on_bad_image == "skip":
        images = _without_bad_images(folder, images)
    for name, paths in images.items():
        if len(paths) < MIN_IMAGES:
            raise DataError(
                f"class folder {folder / name} holds {len(paths)} usable images; "
                f"it takes at least {MIN_IMAGES}, one for the support and one for the query"
            )
    if splits_file is None and (folder / SPLITS_FILE).is_file():
        splits_file = folder / SPLITS_FILE
    splits = {} if splits_file is None else _read_splits(splits_file)
    try:
        return Domain(
            name=Path(folder.absolute()).name or str(root),
            class_images={name: ImageFiles(paths) for name, paths in images.items()},
            splits=splits,
            augment=augment,
        )
    except DataError as error:
        raise DataError(f"{splits_file or folder}: {error}") from error


def sub_folders(folder: Path) -> list[Path]:
    """The folders in a folder by name, hidden ones and links that lead out of it excepted."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give a folder that holds one folder for each domain")
    return [entry for entry in _visible(folder, folder.resolve()) if entry.is_dir()]


def _visible(folder: Path, root: Path) -> list[Path]:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        if entry.is_symlink() and not _leads_into(entry, root):
            raise DataError(f"{entry} is a link that is broken or leads out of {root}; put the files themselves there")
    return entries


def _leads_into(link: Path, root: Path) -> bool:
    try:
        return link.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):  # a link to nothing, or to itself
        return False


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in FORMATS and path.is_file()


def _images_of_class(folder: Path, root: Path) -> list[Path]:
    entries = _visible(folder, root)
    nested = [entry for entry in entries if entry.is_dir()]
    if nested:
        raise DataError(
            f"class folder {folder} holds a folder, {nested[0].name!r}, where images are expected; "
            f"for a folder of domains write folder:{root}/*"
        )
    return [entry for entry in entries if _is_image(entry)]


def _without_bad_images(folder: Path, images: dict[str, list[Path]]) -> dict[str, list[Path]]:
    bad: list[Path] = []
    for paths in images.values():
        for path in paths:
            try:
                read_image(path)
            except DataError:
                bad.append(path)
    if bad:
        listed = "\n".join(map(str, bad))
        warnings.warn(f"{folder}: {len(bad)} images cannot be read and are left out:\n{listed}", stacklevel=2)
    left_out = set(bad)
    return {name: [path for path in paths if path not in left_out] for name, paths in images.items()}


def _read_splits(path: Path) -> dict[str, list[str]]:
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"splits file {path} cannot be read as JSON: {error}") from error
    if isinstance(splits, dict) and splits and all(map(_is_list_of_names, splits.values())):
        return splits
    raise DataError(
        f'splits file {path} must hold {{"train": [names], "validation": [names], "test": [names]}} '
        "with the names of class folders"
    )


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
