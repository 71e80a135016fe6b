"""The layout of the authors' checkpoints: the keys that a backbone asks for, their shapes, and what they become."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Size, Tensor

from smat_peft.experts.router import SPECTRAL_WEIGHTS
from smat_peft.sharing.reference_names import Naming

NET, DELTA, GATES, ROUTER = "net.encoder.", "delta_hypernet.phis.", "mask_hypernet.log_alphas.", "mask_hypernet."
TARGET_SPARSITY, EPISODES_SEEN = "mask_sparsity_targets", "num_metaupdates"
KEYS, SKILL_TOKENS = f"{ROUTER}masks_keys", f"{ROUTER}skills_tokens"
NEVER_SAVED = (KEYS, SKILL_TOKENS)  # on a CUDA device, METHOD 12.1
UNUSED = {
    "net.head.weight": "placeholder of a head, which no prediction reads",  # METHOD 1
    f"{ROUTER}count_encoding": "never read by the authors' code either",  # METHOD 12.10
}


class Expected(NamedTuple):
    """The shape that the tensor of a key must have, and what it becomes."""

    shape: Size
    use: str


@dataclass(frozen=True)
class Row:
    """A parameter of the reference's backbone.

    Attributes:
        number: Its number among the deltas and gates.
        name: Its name there.
        parts: Our backbone's parameters that it becomes, by name: one below the other, its rows are theirs.
    """

    number: int
    name: str
    parts: Mapping[str, Tensor]

    @property
    def shape(self) -> Size:
        """The shape of the parts together."""
        shapes = [part.shape for part in self.parts.values()]
        return Size([sum(shape[0] for shape in shapes), *shapes[0][1:]])

    def split(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The rows of a tensor that belong to each part, by the part's name."""
        return zip(self.parts, tensor.split([len(part) for part in self.parts.values()]), strict=True)


def match_parameters(
    tensors: Mapping[str, Tensor], theirs: Naming, parameters: Mapping[str, Tensor], ours: Naming
) -> list[Row]:
    """The parameters of the reference's backbone that have a counterpart in ours, whose `parameters` are given."""
    depth = max(theirs.depth(key.removeprefix(NET) for key in tensors if key.startswith(NET)), ours.depth(parameters))
    called = {role: name for name, (role,) in ours.parameters(depth).items()}
    rows, number = [], 0
    for name, roles in theirs.parameters(depth).items():
        parts = {called[role]: parameters[called[role]] for role in roles if called[role] in parameters}
        if parts:
            rows.append(Row(number, name, parts))
        if parts or f"{NET}{name}" in tensors:
            number += 1
    return rows


def expected_keys(rows: list[Row], router: Mapping[str, Size], num_experts: int) -> dict[str, Expected]:
    """All keys that a checkpoint should have, given the shapes of our router by name."""
    expected = {
        TARGET_SPARSITY: Expected(Size([num_experts]), "target_sparsity"),
        EPISODES_SEEN: Expected(Size([1]), "episodes_seen of the router"),
    }
    for row in rows:
        names = ", ".join(row.parts)
        expected[f"{NET}{row.name}"] = Expected(row.shape, f"compared with {names}")
        expected[f"{DELTA}{row.number}"] = Expected(row.shape, f"delta of {names}")
        expected[f"{GATES}{row.number}"] = Expected(Size([*row.shape, num_experts]), f"gates of {names}")
    return expected | {router_key(name): Expected(shape, f"{name} of the router") for name, shape in router.items()}


def head_keys(rows: list[Row]) -> tuple[str, str]:
    """The keys of the delta and the gates of the placeholder of a head, which is the last parameter."""
    number = max(row.number for row in rows) + 1
    return f"{DELTA}{number}", f"{GATES}{number}"


def misfits(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Expected], rows: list[Row], optional: Collection[str]
) -> list[str]:
    """What a checkpoint lacks, has in another shape, or has without a place in the backbone; a line each."""
    lines = [
        f"{key} ({use}): " + (f"{list(tensors[key].shape)}, not {list(shape)}" if key in tensors else "missing")
        for key, (shape, use) in expected.items()
        if (tensors[key].shape != shape if key in tensors else key not in optional)
    ]
    placed = {*expected, *head_keys(rows)}
    numbered = (key for key in tensors if key.startswith((NET, DELTA, GATES)))
    return lines + [f"{key}: has no place in the backbone" for key in numbered if key not in placed]


def weight_distances(tensors: Mapping[str, Tensor], rows: list[Row]) -> dict[str, float]:
    """How far our backbone's parameters are from the checkpoint's, relative to their norms, by the names there."""
    distances = {}
    for row in rows:
        theirs = tensors[f"{NET}{row.name}"].float()
        ours = torch.cat([part.detach().float().cpu() for part in row.parts.values()])
        distances[row.name] = float((ours - theirs).norm() / theirs.norm().clamp_min(torch.finfo().tiny))
    return distances


def router_key(name: str) -> str:
    """A checkpoint's key of a tensor of our router."""
    if name in ("keys", "skill_tokens"):
        return KEYS if name == "keys" else SKILL_TOKENS
    module, _, kind = name.rpartition("_")
    path = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}.get(module, module)
    if module in SPECTRAL_WEIGHTS:  # torch's old spectral norm renames the weight
        kind = {"weight": "weight_orig", "u": "weight_u", "v": "weight_v"}.get(kind, kind)
    return f"{ROUTER}task_embed_agg.{path}.{kind}"
