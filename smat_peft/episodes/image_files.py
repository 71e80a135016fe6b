"""Image files of a user as pictures in RGB: what Pillow reads, and what it reads with the help of a package."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from smat_peft.errors import DataError

# Pillow knows more formats; those left out run other programs (EPS) or hold no picture of their own (stubs).
FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
    ".pnm": "PPM",
    ".avif": "AVIF",
}
READ_BY_PILLOW = sorted(set(FORMATS.values()))


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
SUFFIXES = frozenset((*FORMATS, *PLUGINS))
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # Pillow reads their 16 bits into 32


def is_image_file(path: Path) -> bool:
    """Whether a path is a file whose name ends as an image's does."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def open_image(path: Path) -> Image.Image:
    """The image in a file, in RGB, turned as its EXIF entry says; the first of several.

    Raises:
        DataError: The file cannot be read as an image, or takes a package that is not installed.
    """
    return read_image(path, formats=_formats(path))


def check_opens(path: Path) -> None:
    """Raise the error of [`open_image`] for a file that is no image; one that breaks off later is not found."""
    try:
        Image.open(path, formats=_formats(path)).close()
    except DataError:
        raise
    except Exception:  # whatever it is, reading the whole image says it in our words
        open_image(path)


def read_image(file: Path | BinaryIO, name: str = "", *, formats: list[str] = READ_BY_PILLOW) -> Image.Image:
    """An image in RGB, turned as its EXIF entry says; the first of several.

    Args:
        file: A path, or the bytes of an image file.
        name: What messages call it; the path if not given.
        formats: Pillow's names of the formats that it may have.

    Raises:
        DataError: The file is not an image, is damaged, or in another format; or it has so many pixels that it may be
            meant to exhaust memory, or values whose range is not known.
    """
    try:
        with Image.open(file, formats=formats) as opened:
            ImageOps.exif_transpose(opened, in_place=True)
            return in_rgb(opened)
    except Exception as error:  # what Pillow raises depends on where a damaged file breaks off
        raise DataError(
            f"{name or file} cannot be read as an image ({type(error).__name__}: {error}); "
            "mend it, take it away, or leave such files out with on_bad_image='skip'"
        ) from error


def _formats(path: Path) -> list[str]:
    """What a file may hold by its name, with the package that reads it at hand."""
    plugin = PLUGINS.get(path.suffix.lower())
    if plugin is None:
        return READ_BY_PILLOW
    try:
        module = importlib.import_module(plugin.module)
    except ImportError as error:
        raise DataError(
            f"{path}: Pillow does not read {plugin.format} by itself; pip install {plugin.package}, or save the image "
            "as JPEG or PNG"
        ) from error
    if hasattr(module, "register_heif_opener"):  # the other one registers itself
        module.register_heif_opener()
    return [plugin.format]


def in_rgb(image: Image.Image) -> Image.Image:
    """A copy in RGB, which holds no file; what is transparent is white.

    Raises:
        DataError: It has values whose range is not known.
    """
    if image.has_transparency_data:  # what lies behind was not meant to be seen, and often is black on black
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BIT_FORMATS):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))  # Pillow would cut off at 255
    elif image.mode in ("I", "F"):
        raise DataError("32-bit values, of which it is not known what is white; save it with 8 or 16 bits")
    return image.convert("RGB")
