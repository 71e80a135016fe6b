"""Folders of images, one for each class."""

from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image


def write_classes(
    folder: Path, names: Iterable[str], images: int, draw: Callable[[int, int], Image.Image], suffix: str = "png"
) -> Path:
    """Write images `0.png`, `1.png`, ... of each class; `draw` is called with the numbers of class and image."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for image in range(images):
            draw(number, image).save(folder / name / f"{image}.{suffix}")
    return folder
