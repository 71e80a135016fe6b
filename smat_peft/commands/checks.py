"""What can be found out before a command begins its work, so that a mistake costs no training."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from accelerate.tracking import get_available_trackers
from torch import nn

from smat_peft.episodes.domain import Domain
from smat_peft.episodes.folders import ImageFiles
from smat_peft.episodes.image_files import check_opens
from smat_peft.episodes.images import ImageTransform
from smat_peft.errors import CheckpointError, ConfigurationError, SmatError
from smat_peft.few_shot.backbone import device_of
from smat_peft.files import write_text
from smat_peft.tuner.tasks import features

LEFT_OUT = "left_out.txt"


def require_at_least(arguments: object, least: int, *names: str) -> None:
    """Refuse arguments below a number; those that are not given are let be.

    Raises:
        ConfigurationError: Names the first one.
    """
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ConfigurationError(f"--{name} must be at least {least}, got {value}")


def check_images(domains: Iterable[Domain]) -> None:
    """Open every image file of the domains, without decoding it: a file that is no image is seen at once.

    Raises:
        DataError: Names the first file that cannot be opened. One that breaks off later is found when it is drawn.
    """
    for domain in domains:
        for images in domain.class_images.values():
            for path in images.places if isinstance(images, ImageFiles) else ():
                check_opens(path)


def check_image_size(model: nn.Module, transform: ImageTransform, name: str) -> None:
    """Try one image of the transform's size.

    Raises:
        ConfigurationError: The backbone, called `name`, cannot take it.
    """
    height, width = transform.size
    try:
        with torch.no_grad():
            features(model, torch.zeros(1, 3, height, width, device=device_of(model)))
    except SmatError:
        raise
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(
            f"backbone {name!r} cannot take images of {height} x {width}: {reason}; choose another --image_size"
        ) from error


def check_trackers(names: Sequence[str]) -> None:
    """Raise a ConfigurationError unless Accelerate knows these trackers and they are installed."""
    installed = [tracker.value for tracker in get_available_trackers()]
    for name in names:
        if name not in (*installed, "all"):
            raise ConfigurationError(
                f"--report_to {name}: there is no such tracker, or it is not installed; "
                f"installed are {', '.join(installed) or 'none'}"
            )


def make_output_dir(folder: Path) -> None:
    """Make the output directory.

    Raises:
        CheckpointError: It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"--output_dir {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise CheckpointError(f"--output_dir {folder} cannot be written to")


def list_left_out(folder: Path, domains: Iterable[Domain]) -> None:
    """Write the images of the domains that could not be read into the output directory, where there are some."""
    left_out = dict.fromkeys(name for domain in domains for name in domain.left_out)
    if left_out:
        write_text(folder / LEFT_OUT, "\n".join(left_out) + "\n")
