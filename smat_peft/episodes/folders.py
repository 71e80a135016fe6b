"""A folder of class folders of images as a domain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from smat_peft.episodes.domain import Domain
from smat_peft.episodes.image_files import is_image_file, open_image
from smat_peft.episodes.stored import StoredImages, StoredSettings
from smat_peft.errors import DataError

SPLITS_FILE = "splits.json"


class ImageFiles(StoredImages):
    """Images in files; their places are paths."""

    def read(self, place: Path) -> Image.Image:
        return open_image(place)

    def name(self, place: Path) -> str:
        return str(place)


def read_image_folder(folder: Path, settings: StoredSettings) -> Domain:
    """A folder with one folder of images for each class, as a domain of the folder's name.

    Args:
        folder: The folder. Hidden files and files that are not images are passed over. Its own `splits.json`, where it
            has one, says which classes are for what unless the settings name a file.
        settings: How to treat its images.

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
        found = "images but no class folders" if any(map(is_image_file, entries)) else "no class folders"
        raise DataError(f"{folder} holds {found}; put the images of each class into a folder of the class's name")
    images = {entry.name: ImageFiles(_images_of_class(entry, root)) for entry in class_folders}
    if settings.splits_file is None and (folder / SPLITS_FILE).is_file():
        settings = replace(settings, splits_file=folder / SPLITS_FILE)
    return settings.domain(Path(folder.absolute()).name or str(root), f"folder:{folder}", images)


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


def _images_of_class(folder: Path, root: Path) -> list[Path]:
    entries = _visible(folder, root)
    nested = [entry for entry in entries if entry.is_dir()]
    if nested:
        raise DataError(
            f"class folder {folder} holds a folder, {nested[0].name!r}, where images are expected; "
            f"for a folder of domains write folder:{root}/*"
        )
    return [entry for entry in entries if is_image_file(entry)]
