"""What users hand to the classifier: images in several forms, and labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from smat_peft.episodes.image_files import open_image
from smat_peft.episodes.images import ImageTransform
from smat_peft.errors import DataError

FORMS = (
    "a list of PIL images, paths or uint8 arrays [H, W, 3], one uint8 array [N, H, W, 3], "
    "or a pixel tensor [N, 3, H, W]"
)


def pixel_batches(images: Any, transform: ImageTransform | None, batch_size: int) -> Iterator[Float[Tensor, "N 3 H W"]]:
    """Pixels of images, so many at a time, each image read when its batch is due.

    Args:
        images: In one of [`FORMS`]; a pixel tensor is passed on as it is.
        transform: Makes pixels of images; only a pixel tensor does without.
        batch_size: Images a batch.

    Raises:
        DataError: The images have another form, there are none, or a file cannot be read.
    """
    checked = check_images(images, transform)
    for start in range(0, len(checked), batch_size):
        batch = checked[start : start + batch_size]
        if isinstance(batch, Tensor):
            yield batch
        else:
            assert transform is not None
            yield torch.stack([transform.evaluation(_open(image, start + n)) for n, image in enumerate(batch)])


def check_images(images: Any, transform: ImageTransform | None) -> Tensor | Sequence[Any]:
    """The images as something that can be cut into parts.

    Raises:
        DataError: They are nothing that [`pixel_batches`] can make pixels of.
    """
    if isinstance(images, Tensor):
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise DataError(
                f"pixels must be a floating-point tensor [N, 3, H, W], got {images.dtype} {list(images.shape)}"
            )
    elif isinstance(images, np.ndarray) and images.ndim > 1:
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise DataError(f"an array of images must be uint8 [N, H, W, 3], got {images.dtype} {list(images.shape)}")
        images = list(images)
    elif hasattr(images, "tolist"):  # paths in an array, or in a column of pandas
        images = images.tolist()
    if not isinstance(images, Tensor):
        if isinstance(images, (str, os.PathLike, Image.Image)) or not isinstance(images, Sequence):
            raise DataError(f"images must be {FORMS}, not a {type(images).__name__}")
        if transform is None:
            raise DataError(
                "without an image_processor only a pixel tensor [N, 3, H, W] can be taken; give the model's"
            )
    if len(images) == 0:
        raise DataError("there are no images")
    return images


def encode_labels(labels: Any) -> tuple[NDArray[Any], Int[Tensor, " N"]]:
    """Class names in sorted order, and the number of each label's class among them.

    Raises:
        DataError: Labels are no list, missing, neither all strings nor all numbers, or of fewer than two classes.
    """
    shape = getattr(labels, "shape", (0,))  # of arrays, tensors and pandas' tables
    if isinstance(labels, str | Mapping) or not isinstance(labels, Iterable) or len(shape) != 1:
        of_shape = "" if len(shape) == 1 else f" of shape {list(shape)} (of one-hot rows, take argmax(1))"
        raise DataError(
            f"labels must be a list with one string or number for each image, not a {type(labels).__name__}{of_shape}"
        )
    given = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    for position, label in enumerate(given):
        if _is_missing(label):
            raise DataError(f"label {position} is missing ({label}); give every image a class, or leave the image out")
        if not isinstance(label, (str, Real)):
            raise DataError(f"label {position} is a {type(label).__name__}; labels must be strings or numbers")
    if len({isinstance(label, str) for label in given}) > 1:
        raise DataError("labels are strings and numbers mixed; make all of them strings or all of them numbers")
    classes, codes = np.unique(np.array(given), return_inverse=True)
    if len(classes) < 2:
        found = f"only one class, {classes[0].item()!r}" if len(classes) else "no labels"
        raise DataError(f"the support holds {found}: there is nothing to tell apart; give at least two classes")
    return classes, torch.from_numpy(codes)


def _is_missing(label: Any) -> bool:
    try:
        return label is None or bool(label != label)  # NaN differs from itself
    except TypeError:  # pandas' NA neither does nor does not
        return True


def _open(image: Any, position: int) -> Image.Image:
    if isinstance(image, Image.Image):
        try:
            return ImageOps.exif_transpose(image)
        except Exception as error:  # it is closed, or breaks off: what Pillow raises depends on how
            raise DataError(
                f"image {position} cannot be read ({type(error).__name__}: {error}); give it open, or give its path"
            ) from error
    if isinstance(image, (str, os.PathLike)):
        return open_image(Path(image))
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise DataError(
                f"image {position} is an array {image.dtype} {list(image.shape)}; it must be uint8 [H, W, 3]"
            )
        return Image.fromarray(image)
    raise DataError(f"image {position} is a {type(image).__name__}; images must be {FORMS}")
