"""What every test shares: no network, one thread, shapes checked, a small backbone."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

from jaxtyping import install_import_hook

# Before the first import of smat_peft, or there is nothing left to hook.
# Not in experts/compiled.py: torch's compiler cannot read the checks.
mathematics = ("gates", "interpolate", "kernels", "counting", "patterns", "prototypes", "router")
checked = [*(f"smat_peft.experts.{name}" for name in mathematics), "smat_peft.few_shot"]
install_import_hook(checked, "beartype.beartype")

from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import torch
from transformers import ViTConfig, ViTModel

from smat_peft.experts import compiled

torch.set_num_threads(1)  # sums are then rounded in the same order on every machine

hypothesis.settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="module", params=["eager", "compiled"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test twice: as is, and with generated code for merges of 4 experts, one task or four."""
    if request.param == "compiled":
        least, compiled.MIN_SIZE = compiled.MIN_SIZE, 32
        for num_tasks in (1, 4):
            assert compiled.compile_passes("merge", "gradients", *compiled.COUNTS, num_experts=4, num_tasks=num_tasks)
        yield request.param
        compiled.MIN_SIZE = least
        compiled.forget_compiled_passes()
    else:
        yield request.param


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
