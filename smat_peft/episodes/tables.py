"""Data sets of the `datasets` library as domains: on the Hub, saved on disk, or parquet files."""

from __future__ import annotations

import io
import warnings
from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from smat_peft.episodes.domain import Domain
from smat_peft.episodes.image_files import read_image
from smat_peft.episodes.stored import MIN_IMAGES, StoredImages, StoredSettings
from smat_peft.errors import DataError


class TableImages(StoredImages):
    """Images in a column of a data set; their places are rows.

    Args:
        places: Rows.
        table: The data set, of the one column of images, not decoded.
        origin: What messages call the data set.
        folders: Where files may lie that a row names in place of an image: a data set must not choose what is read.
    """

    def __init__(self, places: Sequence[int], table: Any, origin: str, folders: Sequence[Path]) -> None:
        super().__init__(places)
        self.table, self.origin, self.folders = table, origin, folders

    def read(self, place: int) -> Image.Image:
        (value,) = self.table[int(place)].values()
        if value is None or not any(value.values()):
            raise DataError(f"{self.name(place)} is empty")
        if value["bytes"] is not None:
            return read_image(io.BytesIO(value["bytes"]), self.name(place))
        return read_image(self._checked(Path(value["path"]), place), self.name(place))

    def _checked(self, path: Path, place: int) -> Path:
        if not path.is_file():
            raise DataError(f"{self.name(place)} is no file here: {path}; load the data set with its images in it")
        if not any(path.resolve().is_relative_to(folder.resolve()) for folder in self.folders):
            raise DataError(
                f"{self.name(place)} is a file outside the data set: {path}; if it may be read, say so with "
                f"?files={path.parent}"
            )
        return path

    def name(self, place: int) -> str:
        return f"the image in row {place} of {self.origin}"


def read_hub(location: str, options: Mapping[str, str], settings: StoredSettings) -> Domain:
    """A data set on the Hub, `NAME[:CONFIG][@SPLIT]`, as a domain called what stands after the last slash.

    Args:
        location: The data set. A split may be any that `datasets` knows, such as `train+test` or `train[:10%]`.
        options: `image` and `label`, names of columns; found by their types if not given. `files`, a folder that image
            files may lie in, besides the data set's own and the library's caches.
        settings: How to treat its images.

    Raises:
        DataError: There is no such data set, or no column of images or labels, or more than one that could be meant.
    """
    origin = f"hub:{location}"
    name_and_config, _, split = location.partition("@")
    name, _, config = name_and_config.partition(":")
    if not name:
        raise DataError(f"{origin!r} names no data set; write hub:NAME, hub:NAME:CONFIG or hub:NAME@SPLIT")
    table = _open(origin, lambda: datasets.load_dataset(name, config or None, split=split or None))
    return _table_domain(origin, location.rpartition("/")[2], Path(name), table, options, settings)


def read_disk(location: str, options: Mapping[str, str], settings: StoredSettings) -> Domain:
    """A data set in a folder that `save_to_disk` wrote, `PATH[@SPLIT]`; otherwise as [`read_hub`]."""
    origin = f"disk:{location}"
    folder, split = Path(location).expanduser(), ""
    if not folder.exists() and "@" in location:
        path, _, split = location.rpartition("@")
        folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"{origin}: {folder} is not a folder; give one that save_to_disk of a data set has written")
    table = _open(origin, lambda: datasets.load_from_disk(str(folder)))
    if split:
        splits = list(table) if isinstance(table, dict) else []
        if split not in splits:
            raise DataError(f"{origin}: there is no split {split!r}; there are {', '.join(splits) or 'none'}")
        table = table[split]
    return _table_domain(origin, Path(location).name, folder, table, options, settings)


def read_parquet(location: str, options: Mapping[str, str], settings: StoredSettings) -> Domain:
    """Parquet files, a path or a pattern with `*`, as a domain; otherwise as [`read_hub`].

    It is called like the file or, for a pattern, like the folder that the files are in.
    """
    origin = f"parquet:{location}"
    pattern = Path(location).expanduser().absolute()
    folder = next((parent for parent in pattern.parents if "*" not in str(parent)), pattern)
    found = folder.glob(str(pattern.relative_to(folder))) if pattern != folder else []
    files = sorted(str(path) for path in found if path.is_file())
    if not files:
        raise DataError(f"{origin}: there is no such file; give a parquet file, or a pattern such as data/*.parquet")
    table = _open(origin, lambda: datasets.Dataset.from_parquet(files))
    return _table_domain(origin, folder.name if "*" in location else pattern.stem, folder, table, options, settings)


def _open(origin: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # what the library raises depends on where a data set or the network fails
        reason = " ".join(str(error).split())
        raise DataError(
            f"{origin} cannot be loaded ({type(error).__name__}: {reason}); "
            "see that its name is right and it is not empty"
        ) from error


def _table_domain(
    origin: str, name: str, folder: Path, table: Any, options: Mapping[str, str], settings: StoredSettings
) -> Domain:
    if isinstance(table, dict):
        if len(table) != 1:
            first = next(iter(table), "train")
            raise DataError(f"{origin} has the splits {', '.join(table)}; choose with {origin}@{first}")
        (table,) = table.values()
    if not len(table):
        raise DataError(f"{origin} has no rows; choose another split or file")
    table = table.with_format(None)
    image = _find_column(origin, table, options.get("image"), "image", datasets.Image)
    label = _find_column(origin, table, options.get("label"), "label", datasets.ClassLabel)
    pictures = table.select_columns([image])
    try:
        pictures = pictures.cast_column(image, datasets.Image(decode=False))
    except Exception as error:  # Arrow's own errors among them
        raise DataError(f"{origin}: column {image!r} holds {table.features[image]}, not images") from error
    folders = [folder, Path(datasets.config.HF_CACHE_HOME), Path(datasets.config.HF_DATASETS_CACHE)]
    if "files" in options:
        folders.append(Path(options["files"]).expanduser())
    rows = _rows_of_classes(origin, table, label)
    return settings.domain(
        name, origin, {key: TableImages(found, pictures, origin, folders) for key, found in rows.items()}
    )


def _find_column(origin: str, table: Any, given: str | None, what: str, kind: type) -> str:
    columns = ", ".join(f"{name} ({_type_name(feature)})" for name, feature in table.features.items())
    if given is not None:
        if given not in table.features:
            raise DataError(f"{origin}: there is no column {given!r}; its columns are {columns}")
        return given
    fitting = [name for name, feature in table.features.items() if isinstance(feature, kind)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DataError(
            f"{origin}: columns {', '.join(fitting)} could each be the {what}; choose with ?{what}={fitting[0]}"
        )
    raise DataError(
        f"{origin}: no column is of type {kind.__name__}; name one with ?{what}=COLUMN; its columns are {columns}"
    )


def _type_name(feature: Any) -> str:
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__


def _rows_of_classes(origin: str, table: Any, label: str) -> dict[str, Sequence[int]]:
    """Rows of each class by its name; classes of a single image are left out with a warning."""
    feature = table.features[label]
    is_named = isinstance(feature, datasets.ClassLabel)
    if not is_named and not _type_name(feature).startswith(("int", "uint", "string", "large_string")):
        raise DataError(
            f"{origin}: column {label!r} holds {_type_name(feature)}; "
            "labels are of type ClassLabel, strings or whole numbers"
        )
    rows: dict[Any, array[int]] = defaultdict(lambda: array("q"))
    for row, value in enumerate(table.select_columns([label]).with_format("arrow")[:].column(label).to_pylist()):
        rows[value].append(row)
    known = range(feature.num_classes) if is_named else rows.keys() - {None}
    unlabelled = sum(len(found) for value, found in rows.items() if value not in known)
    if unlabelled:
        raise DataError(
            f"{origin}: {unlabelled} rows have no {label}; choose a split or files whose images are labelled"
        )
    single = [value for value, found in rows.items() if len(found) < MIN_IMAGES]
    if single:
        warnings.warn(f"{origin}: {len(single)} classes have a single image and are left out", stacklevel=2)
    return {
        feature.int2str(value) if is_named else str(value): found
        for value, found in sorted(rows.items())
        if len(found) >= MIN_IMAGES
    }
