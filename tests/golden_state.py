"""The models and episodes of the golden numbers (tests/golden), and how to compare with them."""

from __future__ import annotations

import functools
import json
import lzma
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load
from torch import Tensor
from transformers import ViTConfig, ViTModel

from smat_peft import SMATConfig
from smat_peft.episodes.episode import Episode
from smat_peft.tuner.adapters import active_adapter, find_router, smat_layers

FOLDER = Path(__file__).parent / "golden"
RUN: dict[str, Any] = json.loads((FOLDER / "run.json").read_text())
SETTINGS: dict[str, Any] = RUN["settings"]


def numbers(name: str) -> dict[str, Tensor]:
    """The tensors of one golden file."""
    return load(_decompressed(name))


@functools.cache
def _decompressed(name: str) -> bytes:
    return lzma.decompress((FOLDER / f"{name}.safetensors.xz").read_bytes())


def section(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below `prefix/`, by the rest of their names."""
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}


def episode(index: int) -> Episode:
    """Golden episode 0 to 7."""
    part = section(numbers("episodes"), f"ep{index}")

    def pixels(images: Tensor) -> Tensor:
        return (images.float() / 255 - 0.5) / 0.5

    return Episode(
        support=pixels(part["support"]),
        support_labels=part["support_labels"],
        query=pixels(part["query"]),
        query_labels=part["query_labels"],
        index=index,
    )


def uniform(index: int) -> Tensor:
    """The router's noise in golden episode `index`, `[M]`."""
    return numbers("episodes")[f"ep{index}/router_uniform"]


def golden_backbone() -> ViTModel:
    """The golden backbone, as it was pretrained."""
    backbone = ViTModel(ViTConfig(**RUN["config"]["vit"]), add_pooling_layer=False)
    backbone.load_state_dict(section(numbers("state0"), "base"))
    return backbone.eval()


def golden_model(pooling: str = "first") -> PeftModel:
    """The golden backbone and adapter in their first state."""
    state = numbers("state0")
    config = SMATConfig(
        num_experts=RUN["config"]["num_experts"],
        target_sparsity=SETTINGS["target_sparsity"],
        router_pooling=pooling,
        router_temperature=(SETTINGS["temperature_start"], SETTINGS["temperature_end"]),
        router_temperature_episodes=SETTINGS["temperature_episodes"],
    )
    model = get_peft_model(golden_backbone(), config)
    with torch.no_grad():
        for kind, parameters in adapter_parameters(model).items():
            for name, tensor in section(state, kind).items():
                parameters[name].copy_(tensor)
        router = find_router(model).router("default")  # type: ignore[union-attr]
        router.episodes_seen.fill_(SETTINGS["episodes_seen"])  # type: ignore[union-attr]
    return model


def adapter_parameters(model: torch.nn.Module) -> dict[str, dict[str, Tensor]]:
    """`{"delta": ..., "gates": ..., "router": ...}`: the adapter's tensors by the golden files' names."""
    adapter = active_adapter(model)
    router = find_router(model).router(adapter)  # type: ignore[union-attr]
    tensors = dict(router.named_parameters()) | dict(router.named_buffers())  # type: ignore[union-attr]
    tensors.pop("episodes_seen")
    owned = [(layer, name) for layer in smat_layers(model) for name in layer.parameter_names()]
    return {
        "delta": {layer.full_name(name): layer.smat_delta[adapter][name] for layer, name in owned},
        "gates": {layer.full_name(name): layer.smat_gates[adapter][name] for layer, name in owned},
        "router": {golden_router_name(name): tensor for name, tensor in tensors.items()},
    }


def distance(ours: Tensor, golden: Tensor) -> float:
    """||ours - golden|| / ||golden||."""
    ours, golden = ours.detach().double(), golden.double()
    return float((ours - golden).norm() / golden.norm().clamp_min(1e-30))


def golden_router_name(name: str) -> str:
    """`qkv_weight` -> `qkv.weight`; names of one part, such as `keys` and `skill_tokens`, are the same."""
    part, _, attribute = name.rpartition("_")
    return f"{part}.{attribute}" if attribute in ("weight", "bias", "u", "v") else name
