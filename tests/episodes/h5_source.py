"""A source of Meta-Dataset as it lies on disk: a specification, and an .h5 file for each class."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def specification(counts: Sequence[int] = (5, 2, 3), images: int = 6, noun: str = "bird") -> dict[str, Any]:
    """A specification as Meta-Dataset writes it, of so many classes in each split."""
    classes = range(sum(counts))
    return {
        "name": "birds",
        "classes_per_split": dict(zip(("TRAIN", "VALID", "TEST"), counts, strict=True)),
        "images_per_class": {f"{number}": images for number in reversed(classes)},
        "class_names": {f"{number}": f"{noun} {number}" for number in classes},
        "path": "/somewhere/else",
        "file_pattern": "{}.tfrecords",
        "__class__": "DatasetSpecification",
    }


def write_source(folder: Path, content: dict[str, Any], images: int, draw: Callable[[int, int], np.ndarray]) -> Path:
    """Write the source; `draw` gives the pixels `[H, W, 3]` for the numbers of a class and an image."""
    folder.mkdir(parents=True)
    (folder / "dataset_spec.json").write_text(json.dumps(content))
    for number in range(len(content["class_names"])):
        with h5py.File(folder / f"{number}.h5", "w") as file:
            for image in range(images):
                file.create_dataset(f"{image}/image", data=draw(number, image))
                file.create_dataset(f"{image}/label", data=number)
    return folder
