"""What the libraries of the authors' backbones call a vision transformer's parameters, in the order of its modules.

The order matters: a checkpoint numbers its deltas and gates by it, and safetensors files do not keep it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from smat_peft.tuner.features import REFERENCE_FEATURE

BARE = ("cls_token", "positions")  # parameters themselves; what else is named is a module with a weight and a bias


@dataclass(frozen=True)
class Naming:
    """A library's names for the modules of a vision transformer, each with what it is; several names: fused rows.

    Attributes:
        title: The library.
        before: Modules before the blocks, and bare parameters.
        blocks: Path of the list of blocks.
        block: Modules of a block.
        after: Modules after the blocks.
        feature: The feature of [`SMATConfig`] that equals the class token as the library computes it.
        norm_eps: Epsilon of its layer norms; None: that of the model's config.
    """

    title: str
    before: Mapping[str, str]
    blocks: str
    block: Mapping[str, str]
    after: Mapping[str, str]
    feature: str
    norm_eps: float | None = None

    def depth(self, names: Iterable[str]) -> int:
        """How many blocks there are among parameters of these names."""
        found = (re.match(rf"{re.escape(self.blocks)}\.(\d+)\.", name) for name in names)
        return max((int(match[1]) + 1 for match in found if match), default=0)

    def parameters(self, depth: int) -> dict[str, tuple[str, ...]]:
        """Every parameter of a model of so many blocks, with what it is, the same words in each naming."""
        modules = dict(self.before)
        for index in range(depth):
            for name, roles in self.block.items():
                modules[f"{self.blocks}.{index}.{name}"] = " ".join(f"{index}.{role}" for role in roles.split())
        modules |= self.after
        named: dict[str, tuple[str, ...]] = {}
        for module, roles in modules.items():
            if roles in BARE:
                named[module] = (roles,)
                continue
            for kind in ("weight", "bias"):
                named[f"{module}.{kind}"] = tuple(f"{role}.{kind}" for role in roles.split())
        return named


TORCH_HUB = Naming(
    "torch.hub or timm",
    before={"cls_token": "cls_token", "pos_embed": "positions", "patch_embed.proj": "patches"},
    blocks="blocks",
    block={
        "norm1": "norm_before",
        "attn.qkv": "query key value",
        "attn.proj": "attention_output",
        "norm2": "norm_after",
        "mlp.fc1": "fc1",
        "mlp.fc2": "fc2",
    },
    after={"norm": "norm"},
    feature=REFERENCE_FEATURE,
    norm_eps=1e-6,  # METHOD 1
)

_TRANSFORMERS_BEFORE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "positions",
    "embeddings.patch_embeddings.projection": "patches",
}

# Version 4.30, which the authors used, interpolates position embeddings as torch.hub's model does (METHOD 10).
TRANSFORMERS_4 = Naming(
    "transformers 4",
    before=_TRANSFORMERS_BEFORE,
    blocks="encoder.layer",
    block={
        "attention.attention.query": "query",
        "attention.attention.key": "key",
        "attention.attention.value": "value",
        "attention.output.dense": "attention_output",
        "intermediate.dense": "fc1",
        "output.dense": "fc2",
        "layernorm_before": "norm_before",
        "layernorm_after": "norm_after",
    },
    after={"layernorm": "norm"},
    feature=REFERENCE_FEATURE,
)

TRANSFORMERS_5 = Naming(
    "transformers 5",
    before=_TRANSFORMERS_BEFORE,
    blocks="layers",
    block={
        "attention.q_proj": "query",
        "attention.k_proj": "key",
        "attention.v_proj": "value",
        "attention.o_proj": "attention_output",
        "layernorm_before": "norm_before",
        "layernorm_after": "norm_after",
        "mlp.fc1": "fc1",
        "mlp.fc2": "fc2",
    },
    after={"layernorm": "norm"},
    feature="cls",
)


def recognise(names: Iterable[str], namings: Iterable[Naming]) -> Naming | None:
    """The naming by which a model's parameters are called, or None."""
    known = set(names)
    return next((naming for naming in namings if naming.depth(known) and known & set(naming.before)), None)
