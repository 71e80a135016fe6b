"""A folder of small domains, a tiny backbone, and a meta-tuned adapter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from transformers import ViTImageProcessorPil

IMAGES = 4  # of a class


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Accelerate keeps the precision of the first run in a process."""
    AcceleratorState._reset_state(reset_partial_state=True)


def draw_domain(folder: Path, classes: int, suffix: str = "png") -> Path:
    """Class folders of two-coloured images, 12 x 12."""
    random = np.random.default_rng(len(folder.name))
    for number in range(classes):
        (folder / f"class{number:02}").mkdir(parents=True)
        pattern = np.kron(random.integers(0, 256, (2, 2, 3)), np.ones((6, 6, 1)))
        for image in range(IMAGES):
            pixels = np.clip(pattern + random.normal(0, 30, pattern.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{number:02}" / f"{image}.{suffix}")
    return folder


@pytest.fixture(scope="session")
def make_world(make_vit: Any) -> Callable[[Path], Path]:
    """A function that fills a folder.

    `train/green` (JPEG) and `train/red` (PNG) have classes for every split, `few` not enough to train on, `other` six;
    `vit` is a backbone.
    """

    def make(folder: Path) -> Path:
        draw_domain(folder / "train" / "green", 34, "jpg")
        draw_domain(folder / "train" / "red", 34, "png")
        draw_domain(folder / "few", 5)
        draw_domain(folder / "other", 6)
        make_vit().save_pretrained(folder / "vit")
        ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder / "vit")
        return folder

    return make


@pytest.fixture(scope="session")
def world(make_world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a folder, not to be changed."""
    return make_world(tmp_path_factory.mktemp("world"))
