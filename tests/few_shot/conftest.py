"""Images of three easily told classes, and tiny backbones with and without experts, in memory and on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from PIL import Image
from transformers import ViTImageProcessorPil

from smat_peft import SMATConfig
from smat_peft.episodes.images import ImageTransform
from smat_peft.few_shot import load_backbone

NAMES = ("anemone", "broom", "chicory")


@pytest.fixture
def transform() -> ImageTransform:
    return ImageTransform(size=(16, 16), resize=(16, 16))


@pytest.fixture(scope="session")
def examples() -> tuple[list[Image.Image], list[str]]:
    """Twelve images, four of each class, and their class names."""
    return _images(0)


@pytest.fixture(scope="session")
def queries() -> tuple[list[Image.Image], list[str]]:
    """Twelve other images of the same classes."""
    return _images(1)


@pytest.fixture
def smat_vit(make_vit) -> PeftModel:
    """A ViT with three experts that change its outputs."""
    torch.manual_seed(0)
    return get_peft_model(make_vit(), SMATConfig(num_experts=3, init_weights=False)).eval()


@pytest.fixture
def backbone_folder(make_vit, tmp_path) -> Path:
    """The ViT and its image processor as `save_pretrained` leaves them."""
    folder = tmp_path / "backbone"
    make_vit().save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture
def adapted(backbone_folder) -> PeftModel:
    """The backbone of the folder with experts on it."""
    torch.manual_seed(0)
    return get_peft_model(load_backbone(backbone_folder), SMATConfig(num_experts=3, init_weights=False)).eval()


@pytest.fixture
def adapter_folder(adapted, tmp_path) -> Path:
    """These experts as `save_pretrained` leaves them."""
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def _images(seed: int) -> tuple[list[Image.Image], list[str]]:
    patterns = np.random.default_rng(7).integers(0, 256, (len(NAMES), 1, 4, 4, 3))
    noise = np.random.default_rng(seed).normal(0, 20, (len(NAMES), 4, 4, 4, 3))
    pixels = np.clip(patterns + noise, 0, 255).astype(np.uint8)
    return [Image.fromarray(image) for of_class in pixels for image in of_class], [n for n in NAMES for _ in range(4)]
