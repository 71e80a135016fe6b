"""Checkpoints as the authors' code saves them, made of the golden numbers, and the backbones that they belong to."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import ViTConfig, ViTModel

from tests.golden_state import FOLDER, RUN, numbers, section

LAYOUT = json.loads((FOLDER / "authors/reference_layout.json").read_text())
SHARED = {  # what the authors' two models share is stored once, by torch.hub's names
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layers.": "encoder.blocks.",
    "encoder.layernorm.": "encoder.norm.",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.proj",
}
TO_TRANSFORMERS_4 = {
    "encoder.layers.": "encoder.encoder.layer.",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


class Episode(NamedTuple):
    """An episode of the authors', in their pixels."""

    support: Tensor
    support_labels: Tensor
    query: Tensor


def episode(index: int) -> Episode:
    """Episode 0 or 1; their images are among other golden numbers, too."""
    if index == 1:
        task = numbers("authors/lora_task")
        return Episode(task["support"], task["support_labels"], task["query"])
    part = section(numbers("authors/evaluation"), "ep0")
    return Episode(numbers("authors/diffaug")["x"], part["support_labels"], part["query"])


def renamed(name: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        name = name.replace(old, new)
    return name


def hub_state() -> dict[str, Tensor]:
    """The authors' torch.hub model and experts, by golden names: `net/`, `delta/`, `log_alpha/`, `router/`."""
    return numbers("authors/state0")


def transformers_state() -> dict[str, Tensor]:
    """The authors' model of transformers and its experts."""
    own, shared = numbers("authors/hf_state0_differences"), hub_state()
    names = [f"{kind}/{name}" for kind in ("net", "delta", "log_alpha") for name in parameters("hf")]
    names += [name for name in shared if name.startswith("router/") or name == "num_metaupdates"]
    return {name: own[name] if name in own else shared[renamed(name, SHARED)] for name in names}


def parameters(form: str) -> list[str]:
    """Names of the model's parameters in the order of their numbers; `form` is hub or hf."""
    return list(LAYOUT["torchhub_vit" if form == "hub" else "hf_vit_transformers5_names"]["phis"].values())


def state_dict(form: str) -> dict[str, Tensor]:
    """The authors' state dict: of a model of torch.hub (hub), transformers 5 (hf) or transformers 4 (hf4)."""
    state = hub_state() if form == "hub" else transformers_state()
    saved_as = {name: name for name in parameters(form)}
    if form == "hf4":
        saved_as = {
            name: renamed(name, TO_TRANSFORMERS_4) for name in sorted(parameters("hf"), key=_place_in_version_4)
        }
    saved = {"mask_sparsity_targets": torch.full((4,), 0.25), "num_metaupdates": state["num_metaupdates"]}
    saved |= {f"net.{new}": state[f"net/{name}"] for name, new in saved_as.items()}
    saved |= {f"delta_hypernet.phis.{number}": state[f"delta/{name}"] for number, name in enumerate(saved_as)}
    saved |= {f"mask_hypernet.log_alphas.{number}": state[f"log_alpha/{name}"] for number, name in enumerate(saved_as)}
    return saved | {f"mask_hypernet.{name}": tensor for name, tensor in section(state, "router").items()}


def backbone(form: str) -> ViTModel:
    """The frozen backbone of the same form as transformers has it."""
    settings: dict[str, Any] = dict(RUN["config"]["vit"])
    if form == "hub":
        settings["layer_norm_eps"] = 1e-6
    model = ViTModel(ViTConfig(**settings), add_pooling_layer=False).eval()
    net = section(hub_state() if form == "hub" else transformers_state(), "net")
    net.pop("head.weight")
    if form == "hub":
        back = {new: old for old, new in SHARED.items()}
        for name in [name for name in net if "qkv" in name]:
            for part, rows in zip("qkv", net.pop(name).chunk(3), strict=True):
                net[name.replace("attn.qkv", f"attention.{part}_proj")] = rows
        net = {renamed(name, back): tensor for name, tensor in net.items()}
    model.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in net.items()})
    return model


def _place_in_version_4(name: str) -> tuple[int, int]:
    """Layer by layer, the norms of a layer last; what is outside of layers stays in its place."""
    layer = re.search(r"layers\.(\d+)\.(\w+)", name)
    if layer is None:
        return (-1 if "embeddings" in name else 99), 0
    return int(layer[1]), ("attention", "mlp", "layernorm_before", "layernorm_after").index(layer[2])
