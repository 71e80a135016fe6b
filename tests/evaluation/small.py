"""Small domains of coloured patterns and a tiny backbone with experts, for tests and for the processes they start."""

import numpy as np
import torch
from peft import PeftModel, get_peft_model
from PIL import Image
from torch import Tensor, nn

from smat_peft import SMATConfig
from smat_peft.episodes.domain import Domain
from smat_peft.episodes.episode import Episode
from smat_peft.episodes.images import ImageTransform

TRANSFORM = ImageTransform(size=(16, 16), resize=(16, 16))


def make_domain(name: str, classes: int = 8, images: int = 6, seed: int = 0) -> Domain:
    """A domain whose classes are noisy colour patterns, each image its own noise."""
    random = np.random.default_rng(seed)
    patterns = random.integers(0, 256, (classes, 1, 4, 4, 3))
    pixels = np.clip(patterns + random.normal(0, 60, (classes, images, 4, 4, 3)), 0, 255).astype(np.uint8)
    return Domain(name, {f"class {c}": [Image.fromarray(i) for i in of_class] for c, of_class in enumerate(pixels)})


def undecided(episode: Episode) -> Tensor:
    """A predictor's logits that prefer no class."""
    return torch.zeros(len(episode.query), episode.ways)


def with_experts(backbone: nn.Module) -> PeftModel:
    """The backbone with three experts that change its outputs."""
    torch.manual_seed(0)
    return get_peft_model(backbone, SMATConfig(num_experts=3, init_weights=False))
