"""What every test shares: no network, one thread, shapes checked, a small backbone."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

from jaxtyping import install_import_hook

# Before the first import of smat_peft, or there is nothing left to hook.
install_import_hook(["smat_peft.experts", "smat_peft.few_shot"], "beartype.beartype")

from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch
from transformers import ViTConfig, ViTModel

torch.set_num_threads(1)  # sums are then rounded in the same order on every machine

hypothesis.settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def make_vit() -> Callable[..., ViTModel]:
    """A function that builds a fresh ViT, `[N, 3, 16, 16]` -> `[N, 5, 16]`; the same weights for the same seed."""

    def make(seed: int = 0, **changes: Any) -> ViTModel:
        settings: dict[str, Any] = {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "image_size": 16,
            "patch_size": 8,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ViTModel(ViTConfig(**settings | changes), add_pooling_layer=False).eval()

    return make
