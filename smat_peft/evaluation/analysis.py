"""What learned experts look like, in numbers: where they are open, how they overlap, how their gradients agree.

Functions of names, tensors and arrays; what is drawn of them is in the `*_plots` modules beside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster import hierarchy
from torch import Tensor

from smat_peft.experts.gates import BLOCK, by_expert, gate_sigmoid, stretch

Array = NDArray[np.float64]

BEFORE_BLOCKS, AFTER_BLOCKS = "before", "after"

_ATTENTION = r"(?<![a-z])att(ention|n)(?![a-z]).*[._]"
# What a parameter is for, by its full name; the first that fits.
_BY_NAME = {
    "embeddings": r"embed|token|position|probe",
    "biases": r"bias$",
    "attention query": rf"{_ATTENTION}q(uery)?(?![a-z])",
    "attention key": rf"{_ATTENTION}k(ey)?(?![a-z])",
    "attention value": rf"{_ATTENTION}v(alue)?(?![a-z])",
    "attention q, k, v": rf"{_ATTENTION}(qkv|in_proj)(?![a-z])",
    "attention output": rf"{_ATTENTION}(o|out|output|proj|dense)(?![a-z])",
    "MLP in": r"(fc1|lin1|linear1|up_proj|gate_proj|pwconv1|weights_in|intermediate)(?![a-z0-9])",
    "MLP out": r"(fc2|lin2|linear2|down_proj|pwconv2|weights_out|output)(?![a-z0-9])",
    "scales": r"scale|lambda|gamma",
}
NORMS, CONVOLUTIONS, OTHER = "norms", "convolutions", "other"
LAYER_TYPES = (*(name for name in _BY_NAME if name not in ("embeddings", "biases", "scales")), CONVOLUTIONS)
LAYER_TYPES += (NORMS, "biases", "scales", "embeddings", OTHER)  # in the order of pictures


def layer_type(name: str, owner: str) -> str:
    """What a parameter is for, one of [`LAYER_TYPES`].

    Args:
        name: Its full name in the backbone, such as `layers.0.attention.q_proj.weight`.
        owner: Class of the module that owns it, such as `Linear`.
    """
    if "Norm" in owner:
        return NORMS
    otherwise = CONVOLUTIONS if re.match(r"Conv\w*\dd", owner) else OTHER
    return next((kind for kind, pattern in _BY_NAME.items() if re.search(pattern, name)), otherwise)


def block_labels(names: Iterable[str]) -> list[str]:
    """Which block of the backbone each parameter belongs to, for full names in the backbone's order.

    Blocks are called by the first number in a name, or the first two where stages hold blocks (`2.0`); what comes
    before the first block and after it without a number is `"before"` and `"after"`.
    """
    labels, in_blocks = [], False
    for name in names:
        numbers = [part for part in name.split(".") if part.isdigit()][:2]
        in_blocks = in_blocks or bool(numbers)
        labels.append(".".join(numbers) or (AFTER_BLOCKS if in_blocks else BEFORE_BLOCKS))
    return labels


@dataclass(frozen=True)
class OpenGates:
    """The gates of one parameter of the backbone, as they are evaluated.

    Attributes:
        name: Full name of the parameter.
        owner: Class of the module that owns it.
        size: Number of its scalars.
        together: How many scalars are open in expert i and in expert j, `[M, M]`; on the diagonal, open in expert i.
    """

    name: str
    owner: str
    size: int
    together: Array


def open_together(logits: Tensor, temperature: float) -> Array:
    """How many gates `[M, *gate_shape]` are above 0 in expert i and in expert j, `[M, M]` (METHOD 2)."""
    experts = by_expert(logits.detach())
    together = torch.zeros(len(experts), len(experts), dtype=torch.float64)
    for block in experts.split(BLOCK, dim=1):
        is_open = (stretch(gate_sigmoid(block, temperature)) > 0).float()  # sums of a block are exact in 32 bits
        together += (is_open @ is_open.T).cpu()
    return together.numpy()


@dataclass(frozen=True)
class Capacity:
    """How open the experts are in one part of the backbone.

    Attributes:
        part: A layer type or a block.
        size: Number of scalars of the part.
        shares: Share of them that is open, by expert, `[M]`.
    """

    part: str
    size: int
    shares: Array


def capacities(gates: Sequence[OpenGates], parts: Sequence[str]) -> list[Capacity]:
    """Share of open gates by part of the backbone, in the order in which the parts first occur.

    Weighted by their sizes, an expert's shares average to 1 minus its sparsity.

    Args:
        gates: Of each parameter.
        parts: The part that each of them belongs to.
    """
    found = []
    for part in dict.fromkeys(parts):
        inside = [each for each, its_part in zip(gates, parts, strict=True) if its_part == part]
        size = sum(each.size for each in inside)
        found.append(Capacity(part, size, _open_scalars(inside) / size))
    return found


def overlap(gates: Sequence[OpenGates]) -> Array:
    """Intersection over union of the scalars that two experts open, `[M, M]`; 1 on the diagonal.

    Two experts that open nothing are the same, too.
    """
    together = np.sum([each.together for each in gates], axis=0)
    return _intersection_over_union(together, together.diagonal())


def random_overlap(gates: Sequence[OpenGates], *, by_parameter: bool) -> Array:
    """What [`overlap`] is expected to be for random masks that are as dense as the experts', off the diagonal.

    Args:
        gates: Of each parameter.
        by_parameter: As dense in each parameter; else only over all of them together. The former says which part of an
            overlap beyond chance comes from experts being dense in the same places.
    """
    sizes = np.array([each.size for each in gates], dtype=np.float64)[:, None]
    counts = np.stack([each.together.diagonal() for each in gates])  # [parameters, M]
    if not by_parameter:
        sizes, counts = sizes.sum(0, keepdims=True), counts.sum(0, keepdims=True)
    together = np.einsum("pi,pj->ij", counts / sizes, counts)
    np.fill_diagonal(together, counts.sum(0))
    return _intersection_over_union(together, counts.sum(0))


def gradient_cosines(gradients: Iterable[Tensor], gates: Iterable[Tensor], weights: Tensor) -> Array:
    """Cosines between groups of tasks of the delta's gradient, and of each expert's part of it, `[1 + M, G, G]`.

    The delta is multiplied by the mixed gates (METHOD 4), so that its gradient is `sum_m w_m z_m` times that of the
    task's weights; expert m's part is `w_m z_m` times it. Where a gradient is 0, cosines are NaN.

    Args:
        gradients: Of the weights of each group's tasks, one parameter after another, `[G, *shape]`.
        gates: Values of the experts' gates over the same parameters, each broadcasting to `[M, *shape]`.
        weights: Expert weights of each group, `[G, M]`.
    """
    groups, experts = weights.shape
    products = torch.zeros(1 + experts, groups, groups, dtype=torch.float64)
    for gradient, values in zip(gradients, gates, strict=True):
        flat = gradient.reshape(groups, -1)
        opened = values.expand(experts, *gradient.shape[1:]).reshape(experts, -1)
        for number, part in enumerate((weights @ opened, *opened)):
            weighted = (flat * part).double()
            products[number] += weighted @ weighted.T
    norms = products.diagonal(dim1=1, dim2=2).sqrt()
    return (products / (norms[:, :, None] * norms[:, None, :])).numpy()


def between_halves(cosines: Array) -> Array:
    """Cosines between domains from those between their halves, `[..., 2 D, 2 D]` -> `[..., D, D]`.

    Each domain has two groups, one after the other, of other episodes. Off the diagonal is the mean over both halves of
    both domains; on it the cosine between a domain's own halves, which is how well so few episodes tell its gradient.
    """
    size = cosines.shape[-1] // 2
    halves = cosines.reshape(*cosines.shape[:-2], size, 2, size, 2)
    between = halves.mean((-3, -1))
    own = np.arange(size)
    between[..., own, own] = halves[..., own, 0, own, 1]
    return between


def pairs(matrix: Array) -> Array:
    """The values above the diagonal of a symmetric matrix."""
    return matrix[np.triu_indices(len(matrix), 1)]


def cluster(rows: Array) -> Array:
    """Linkage `[R - 1, 4]` of rows by their Euclidean distance (average linkage), for SciPy's dendrograms."""
    return hierarchy.linkage(rows, "average", optimal_ordering=True)


def _open_scalars(gates: Sequence[OpenGates]) -> Array:
    return np.sum([each.together.diagonal() for each in gates], axis=0)


def _intersection_over_union(together: Array, counts: Array) -> Array:
    union = counts[:, None] + counts[None, :] - together
    return np.divide(together, union, out=np.ones_like(together), where=union > 0)
