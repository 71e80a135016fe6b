"""Modules that read a child's parameters without calling it, and modules that keep what they computed of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from smat_peft import SMATConfig
from smat_peft.few_shot.backbone import plain_copy
from smat_peft.tuner.features import extract_features
from smat_peft.tuner.readers import reads_parameters_of
from tests.small_models import make_levit

SIZE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 16,
}
LARGER = (2, 3, 32, 32)  # than CLIP and SigLIP were trained on


class Reading(nn.Module):
    """A child that is read and never called, and one of which only the type is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.linear(x, self.qkv.weight).to(self.out.weight.dtype))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), num_layers=1)


def of_images(model: nn.Module, images: Tensor) -> Tensor:
    return extract_features(model, images, "auto")


def call(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


Case = tuple[Callable[[], nn.Module], list[str] | None, Callable[[nn.Module, Tensor], Tensor], tuple[int, ...]]
CASES: dict[str, Case] = {
    "clip": (lambda: CLIPVisionModel(CLIPVisionConfig(**SIZE)), ["position_embedding"], of_images, LARGER),
    "siglip": (lambda: SiglipVisionModel(SiglipVisionConfig(**SIZE)), ["position_embedding"], of_images, LARGER),
    "levit": (make_levit, None, of_images, LARGER),
    "linear": (Reading, ["qkv"], call, (2, 4)),
    "projection of attention": (Attending, ["out_proj"], call, (2, 3, 8)),
    **{
        f"encoder's {target}": (encoder, [target], call, (2, 3, 8))
        for target in ("linear1", "linear2", "norm1", "norm2", "self_attn")
    },
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Any:
    build, targets, run, shape = CASES[request.param]
    torch.manual_seed(0)
    base = build().eval()
    config = SMATConfig(num_experts=2, init_weights=False, target_modules=targets, feature_dim=8)
    x = torch.randn(shape)
    return get_peft_model(copy.deepcopy(base), config).eval(), base, run, x


def run_in(model: PeftModel, run: Any, x: Tensor) -> Tensor:
    return run(model.get_base_model(), x)


def test_such_a_parameter_is_in_force_with_and_without_gradient_merged_or_not(case: Any) -> None:
    model, base, run, x = case
    adapted = run_in(model, run, x)
    assert not torch.allclose(adapted, run(base, x), atol=1e-3)
    with torch.no_grad():
        assert torch.allclose(run_in(model, run, x), adapted, atol=1e-5)
        model.merge_adapter()
        assert torch.allclose(run_in(model, run, x), adapted, atol=1e-5)
        with model.disable_adapter():
            assert torch.allclose(run_in(model, run, x), run(base, x), atol=1e-6)


def test_it_is_learned(case: Any) -> None:
    model, _, run, x = case
    run_in(model, run, x).square().sum().backward()
    parameters = {name: p for name, p in model.named_parameters() if "smat_delta" in name}
    kept = [p for name, p in parameters.items() if name.endswith("attention_biases")]  # by LeViT
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in kept or parameters.values())


def test_one_task_leaves_nothing_behind_for_another(case: Any) -> None:
    model, base, run, x = case
    with torch.no_grad():
        own = run(base, x)
        adapted = run_in(model, run, x)
        with model.task({}):
            assert torch.allclose(run_in(model, run, x), own, atol=1e-6)
        assert torch.equal(run_in(model, run, x), adapted)
        plain = plain_copy(model, model.interpolate(torch.tensor([0.5, 0.5])))
        assert torch.allclose(run(plain, x), adapted, atol=1e-5)
        assert torch.allclose(run(model.unload(), x), own, atol=1e-6)


def test_nothing_is_left_on_what_is_unloaded(case: Any) -> None:
    model, base, *_ = case
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in base.modules()]
    for bare in (plain_copy(model, {}), model.unload()):
        assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in bare.modules()] == hooks


def test_the_type_of_a_parameter_is_no_reading_of_it() -> None:
    assert reads_parameters_of(Reading(), "qkv")
    assert not reads_parameters_of(Reading(), "out")
