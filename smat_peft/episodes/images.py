"""From a PIL image to the pixels that a backbone takes, as its own image processor does it, and with augmentation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Set
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import file_exists
from numpy.random import RandomState
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch import Tensor
from transformers import AutoImageProcessor

from smat_peft.assets import backbone_source
from smat_peft.episodes.domain import Augmentation
from smat_peft.episodes.image_files import in_rgb
from smat_peft.errors import ConfigurationError, DataError

CROP_AREA = (0.08, 1.0)  # share of the image's area; this, the ratio and the tries are RandomResizedCrop's defaults
CROP_RATIO = (3 / 4, 4 / 3)  # width to height
CROP_TRIES = 10  # before it takes the middle of the image
JITTER = 0.4  # METHOD 10: brightness, contrast and colour are multiplied by 0.6 to 1.4
JITTERED = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)  # in METHOD 10's order

CONVNEXT_SQUEEZE_FROM = 384  # ConvNeXt's processor crops below this size, and squeezes into the square from there on
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class ImageTransform:
    """Resize, crop and normalise an image as the backbone expects it; without further settings, to -1..1.

    Attributes:
        size: Height and width of the result.
        resize: Height and width before the crop of the middle, or the length of the shorter side; None leaves it.
        resample: Filter for resizing.
        rescale: Factor from bytes to numbers, before `mean` and `std`.
        mean: What is taken off each channel.
        std: What each channel is divided by after that.
    """

    size: tuple[int, int]
    resize: tuple[int, int] | int | None = None
    resample: Image.Resampling = Image.Resampling.BILINEAR
    rescale: float = 1 / 255
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @classmethod
    def from_processor(cls, processor: Any, image_size: int | None = None) -> ImageTransform:
        """Take over the settings of one of transformers' image processors.

        Args:
            processor: The processor. It is tried on one image, and refused if its result is another than ours.
            image_size: Height and width of the result in place of the processor's. The size before a crop keeps its
                proportion to it: 256 before 224 becomes 146 before 128 (METHOD 10).

        Raises:
            ConfigurationError: The processor has steps that this class lacks, or its results differ in size.
        """
        resize, size = _sizes(processor)
        transform = cls(
            size=size,
            resize=resize,
            resample=Image.Resampling(processor.resample),
            rescale=processor.rescale_factor if processor.do_rescale else 1.0,
            mean=tuple(processor.image_mean) if processor.do_normalize else (0.0, 0.0, 0.0),
            std=tuple(processor.image_std) if processor.do_normalize else (1.0, 1.0, 1.0),
        )
        _compare_on_one_image(processor, transform)
        return transform if image_size is None else transform.resized(image_size)

    def resized(self, image_size: int) -> ImageTransform:
        """The same transform to squares of `image_size` pixels a side, the share that a crop cuts off unchanged."""
        if image_size < 1:
            raise ConfigurationError(f"image_size must be at least 1, got {image_size}")
        height, width = self.size
        if isinstance(self.resize, int):
            resize: tuple[int, int] | int = image_size * self.resize // min(height, width)
        else:
            before = self.resize or self.size
            resize = (image_size * before[0] // height, image_size * before[1] // width)
        return replace(self, size=(image_size, image_size), resize=resize)

    def evaluation(self, image: Image.Image) -> Tensor:
        """Pixels `[3, H, W]` of an image, the same each time."""
        return self._normalise(self.prepare(image))

    def training(self, image: Image.Image, augment: Set[Augmentation], random: RandomState) -> Tensor:
        """Pixels `[3, H, W]` of an image with random changes (METHOD 10's train transform).

        Args:
            image: The image.
            augment: Which changes may be made: `"crop"` of a random part, `"colour"` for brightness, contrast and
                colour, `"mirror"` left and right. Without `"crop"` the size is made as in evaluation.
            random: Every draw comes from here, in this order.
        """
        return self.finish(self.prepare(image, augment), augment, random)

    def prepare(self, image: Image.Image, augment: Set[Augmentation] = frozenset()) -> Image.Image:
        """The steps that are the same each time an image is drawn: RGB, and the size unless `"crop"` makes it."""
        if image.mode != "RGB":
            image = in_rgb(image)
        return image if "crop" in augment else self._fit(image)

    def finish(self, image: Image.Image, augment: Set[Augmentation], random: RandomState) -> Tensor:
        """The steps that follow [`ImageTransform.prepare`]: those drawn at random, then pixels `[3, H, W]`."""
        if "crop" in augment:
            left, top, width, height = _draw_crop(random, image.width, image.height)
            image = image.crop((left, top, left + width, top + height))
            image = image.resize(self.size[::-1], self.resample)
        if "colour" in augment:
            for enhance in JITTERED:
                image = enhance(image).enhance(1 + JITTER * (2 * random.uniform() - 1))
        if "mirror" in augment and random.uniform() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self._normalise(image)

    def _fit(self, image: Image.Image) -> Image.Image:
        before = self.resize
        if isinstance(before, int):
            short = min(image.size)
            before = (before * image.height // short, before * image.width // short)
            if Image.MAX_IMAGE_PIXELS is not None and before[0] * before[1] > Image.MAX_IMAGE_PIXELS:
                raise DataError(
                    f"an image of {image.width} x {image.height} is too long and thin to be resized to {before[1]} x "
                    f"{before[0]}; cut it, or leave it out"
                )
        if before is not None and before != (image.height, image.width):
            image = image.resize(before[::-1], self.resample)
        height, width = self.size
        if (image.height, image.width) == self.size:
            return image
        top, left = (image.height - height) // 2, (image.width - width) // 2
        return image.crop((left, top, left + width, top + height))  # pads with black where the image is too small

    def _normalise(self, image: Image.Image) -> Tensor:
        pixels = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")
        factor, offset = self._factor_and_offset
        pixels *= factor
        pixels -= offset
        return torch.from_numpy(pixels)

    @cached_property
    def _factor_and_offset(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        mean, std = (np.array(of_channels, dtype=np.float64).reshape(3, 1, 1) for of_channels in (self.mean, self.std))
        return (self.rescale / std).astype(np.float32), (mean / std).astype(np.float32)


def load_image_transform(
    model_name_or_path: str | Path,
    image_size: int | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> ImageTransform:
    """The transform that a model on disk or on the Hub comes with.

    Args:
        model_name_or_path: A folder or the name of a repository.
        image_size: Height and width of the result in place of the model's. Needed where the model comes without an
            image processor; pixels are then scaled to -1..1, and a warning says so.
        revision: Branch, tag or commit on the Hub.
        token: What opens private repositories; the one of `hf auth login` by default.

    Raises:
        ConfigurationError: There is no image processor and no `image_size`, or the processor cannot be used.
    """
    name = backbone_source(model_name_or_path)
    try:
        # The other backend needs torchvision.
        processor = AutoImageProcessor.from_pretrained(name, backend="pil", revision=revision, token=token)
    except Exception as error:  # what transformers raises depends on what is wrong with the file
        if not _has_no_processor(name, revision, token):
            raise ConfigurationError(f"cannot load the image processor of {name!r}: {error}") from error
        if image_size is None:
            raise ConfigurationError(
                f"{name!r} has no image processor ({PROCESSOR_FILES[0]}); "
                "give an image size to have pixels of -1..1 (mean 0.5, standard deviation 0.5)"
            ) from error
        warnings.warn(
            f"{name!r} has no image processor ({PROCESSOR_FILES[0]}): images are made {image_size} x {image_size} "
            "and pixels -1..1 (mean 0.5, standard deviation 0.5)",
            stacklevel=2,
        )
        return ImageTransform((image_size, image_size)).resized(image_size)
    return ImageTransform.from_processor(processor, image_size)


def _has_no_processor(name: str, revision: str | None, token: str | None) -> bool:
    # A failed download must not pass for a model without a processor: its pixels would be scaled wrongly.
    if Path(name).is_dir():
        return not any((Path(name) / file).is_file() for file in PROCESSOR_FILES)
    try:
        return not any(file_exists(name, file, revision=revision, token=token) for file in PROCESSOR_FILES)
    except Exception:  # no connection, or no name of the Hub: it cannot be known
        return False


def _sizes(processor: Any) -> tuple[tuple[int, int] | int | None, tuple[int, int]]:
    given, crop = processor.size, processor.crop_size
    resize: tuple[int, int] | int | None = None
    if processor.do_resize and given is not None:
        crop_share = getattr(processor, "crop_pct", None)
        if crop_share is not None:
            side = given.shortest_edge
            return (int(side / crop_share) if side < CONVNEXT_SQUEEZE_FROM else (side, side)), (side, side)
        resize = (given.height, given.width) if given.height and given.width else given.shortest_edge
    if processor.do_center_crop and crop is not None:
        return resize, (crop.height, crop.width)
    if isinstance(resize, tuple):
        return resize, resize
    raise ConfigurationError(
        f"{type(processor).__name__} makes images of different sizes (size {given}), which do not stack; "
        "set its size to a height and a width, or turn on its center crop"
    )


def _compare_on_one_image(processor: Any, transform: ImageTransform) -> None:
    down, across = np.mgrid[0:30, 0:40]
    probe = Image.fromarray(np.stack([down * 8, across * 6, 255 - down * 4 - across * 3], axis=-1).astype(np.uint8))
    theirs = processor(images=probe, return_tensors="pt").get("pixel_values")
    ours = transform.evaluation(probe)
    # Its torchvision form rounds otherwise when it resizes; another order of channels or another scale is far more.
    if theirs is None or theirs[0].shape != ours.shape or float((theirs[0] - ours).abs().mean()) > 0.02:
        raise ConfigurationError(
            f"{type(processor).__name__} does more than resize, crop, rescale and normalise; "
            "describe what the backbone needs with an ImageTransform of your own"
        )


def _draw_crop(random: RandomState, width: int, height: int) -> tuple[int, int, int, int]:
    for _ in range(CROP_TRIES):
        area = width * height * random.uniform(*CROP_AREA)
        ratio = math.exp(random.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(random.randint(height - crop_height + 1))
            left = int(random.randint(width - crop_width + 1))
            return left, top, crop_width, crop_height
    crop_width = min(width, round(height * CROP_RATIO[1]))
    crop_height = min(height, round(width / CROP_RATIO[0]))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height
