"""Meta-Dataset in PMF's form as domains: for each source a folder of .h5 files, one a class (METHOD 10, Files)."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from smat_peft.episodes.domain import Domain
from smat_peft.episodes.meta_dataset import SPECIFICATION, read_specification
from smat_peft.episodes.stored import StoredImages, StoredSettings
from smat_peft.errors import ConfigurationError, DataError

MAX_OPEN_FILES = 64  # in each process; enough for the 50 classes of an episode, and far below what systems allow


class H5Images(StoredImages):
    """The images of one class, groups "0", "1", ... of its file with a data set `image` each; their places are numbers.

    Args:
        places: Numbers of images.
        path: The file.
    """

    def __init__(self, places: range, path: Path) -> None:
        super().__init__(places)
        self.path = path

    def read(self, place: int) -> Image.Image:
        try:
            file = _open(self.path, os.getpid())
            image = file[f"{place}/image"]
            if image.external or image.is_virtual or image.file.filename != file.filename:  # a file says what is read
                raise DataError(f"{self.name(place)} lies in another file; convert the file to hold its images itself")
            pixels = np.asarray(image)
        except (OSError, KeyError, RuntimeError) as error:
            raise DataError(
                f"{self.name(place)} cannot be read: {error}; download or convert the file again"
            ) from error
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise DataError(f"{self.name(place)} must hold bytes [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
        return Image.fromarray(pixels)

    def name(self, place: int) -> str:
        return f"image {place} of {self.path}"


def read_h5(folder: Path, settings: StoredSettings) -> Domain:
    """One source of Meta-Dataset as a domain of the folder's name, with Meta-Dataset's own class splits.

    Args:
        folder: It holds `dataset_spec.json` and one file `<class id>.h5` for each class.
        settings: How to treat its images.

    Raises:
        DataError: The specification or the file of a class is missing or cannot be used.
        ConfigurationError: h5py is not installed.
    """
    _h5py()
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the folder of one source, which holds {SPECIFICATION}")
    specification = read_specification(folder)
    paths = [folder / f"{number}.h5" for number in range(len(specification.names))]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{folder} lacks the files of {len(missing)} of {len(paths)} classes, {missing[0]} among them")
    images = {
        name: H5Images(range(size), path)
        for name, size, path in zip(specification.names, specification.sizes, paths, strict=True)
    }
    splits = {split: [specification.names[number] for number in ids] for split, ids in specification.splits.items()}
    return settings.domain(folder.absolute().name, f"h5:{folder}", images, splits, specification.hierarchies)


@lru_cache(MAX_OPEN_FILES)
def _open(path: Path, process: int) -> Any:
    """The open file, which is closed when others take its place; a forked process does not share its parent's."""
    return _h5py().File(path, "r")


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ConfigurationError(".h5 files need h5py; install it with: pip install 'smat_peft[h5]'") from error
    return h5py
