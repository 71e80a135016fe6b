"""A folder of small domains, a tiny backbone, and a meta-tuned adapter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from PIL import Image

from smat_peft import SMATConfig, pack_adapter
from smat_peft.few_shot.loading import load_adapter, load_backbone
from smat_peft.meta_tuning.trainer import MetaTrainer
from tests.class_folders import write_classes
from tests.commands.small_run import IMAGES
from tests.small_models import save_vit


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Accelerate keeps the precision of the first run in a process."""
    AcceleratorState._reset_state(reset_partial_state=True)


def draw_domain(folder: Path, classes: int, suffix: str = "png") -> Path:
    """Class folders of images of four noisy colours, 12 x 12."""
    random = np.random.default_rng(len(folder.name))
    patterns = np.kron(random.integers(0, 256, (classes, 2, 2, 3)), np.ones((6, 6, 1)))

    def draw(number: int, _: int) -> Image.Image:
        pixels = patterns[number] + random.normal(0, 30, patterns[number].shape)
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    return write_classes(folder, [f"class{number:02}" for number in range(classes)], IMAGES, draw, suffix)


@pytest.fixture(scope="session")
def make_world() -> Callable[[Path], Path]:
    """A function that fills a folder.

    `train/green` (JPEG) and `train/red` (PNG) have classes for every split, `few` not enough to train on, `other` six;
    `vit` is a backbone.
    """

    def make(folder: Path) -> Path:
        draw_domain(folder / "train" / "green", 34, "jpg")
        draw_domain(folder / "train" / "red", 34, "png")
        draw_domain(folder / "few", 5)
        draw_domain(folder / "other", 6)
        save_vit(folder / "vit")
        return folder

    return make


@pytest.fixture(scope="session")
def world(make_world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a folder, not to be changed."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def adapters(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of adapters that change the world's backbone, not to be changed.

    `two` has two experts and `packed` is its inference form, `one` has one expert, `lora` is of another method.
    """
    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    for name, config in (
        ("two", SMATConfig(num_experts=2, init_weights=False)),
        ("one", SMATConfig(num_experts=1, init_weights=False)),
        ("lora", LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)),
    ):
        get_peft_model(load_backbone(world / "vit"), config).save_pretrained(folder / name)
    pack_adapter(load_adapter(load_backbone(world / "vit"), folder / "two"), folder / "packed")
    return folder


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training is an error of the test."""

    def train(_: Any) -> None:
        raise AssertionError("it began to train")

    monkeypatch.setattr(MetaTrainer, "train", train)
