"""Small domains of coloured patterns and a tiny backbone with experts."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from PIL import Image

from smat_peft import SMATConfig
from smat_peft.episodes.domain import Domain
from smat_peft.episodes.images import ImageTransform


@pytest.fixture
def transform() -> ImageTransform:
    return ImageTransform(size=(16, 16), resize=(16, 16))


@pytest.fixture(scope="session")
def make_domain() -> Callable[..., Domain]:
    """A function that builds a domain whose classes are noisy colour patterns, each image its own noise."""

    def make(name: str, classes: int = 8, images: int = 6, seed: int = 0) -> Domain:
        random = np.random.default_rng(seed)
        patterns = random.integers(0, 256, (classes, 1, 4, 4, 3))
        pixels = np.clip(patterns + random.normal(0, 60, (classes, images, 4, 4, 3)), 0, 255).astype(np.uint8)
        return Domain(name, {f"class {c}": [Image.fromarray(i) for i in of_class] for c, of_class in enumerate(pixels)})

    return make


@pytest.fixture
def smat_vit(make_vit) -> PeftModel:
    """A ViT with three experts that change its outputs."""
    torch.manual_seed(0)
    return get_peft_model(make_vit(), SMATConfig(num_experts=3, init_weights=False))
