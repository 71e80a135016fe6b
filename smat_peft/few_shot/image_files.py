"""Image files of a user: what Pillow reads, and what it reads with the help of a package."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from smat_peft.episodes.folders import FORMATS, read_image
from smat_peft.errors import DataError


class Plugin(NamedTuple):
    """A package that teaches Pillow a format."""

    package: str
    module: str
    format: str


PLUGINS = {
    ".heic": Plugin("pillow-heif", "pillow_heif", "HEIF"),
    ".heif": Plugin("pillow-heif", "pillow_heif", "HEIF"),
    ".jxl": Plugin("pillow-jxl-plugin", "pillow_jxl", "JXL"),
}
SUFFIXES = (*FORMATS, *PLUGINS)


def open_image(path: Path) -> Image.Image:
    """An image in RGB, turned as its EXIF entry says.

    Raises:
        DataError: The file cannot be read as an image, or takes a package that is not installed.
    """
    plugin = PLUGINS.get(path.suffix.lower())
    if plugin is None:
        return read_image(path)
    try:
        module = importlib.import_module(plugin.module)
    except ImportError as error:
        raise DataError(
            f"{path}: Pillow does not read {plugin.format} by itself; pip install {plugin.package}, or save the image "
            "as JPEG or PNG"
        ) from error
    if hasattr(module, "register_heif_opener"):  # the other one registers itself
        module.register_heif_opener()
    try:
        with Image.open(path, formats=[plugin.format]) as file:
            return ImageOps.exif_transpose(file).convert("RGB")
    except Exception as error:  # what a plugin raises depends on where a damaged file breaks off
        raise DataError(f"{path} cannot be read as an image ({type(error).__name__}: {error})") from error
