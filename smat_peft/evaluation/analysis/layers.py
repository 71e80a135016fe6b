"""Which part of a backbone a parameter belongs to, by its name: what it is for, and how deep it lies."""

from __future__ import annotations

import re
from collections.abc import Iterable

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
LAYER_TYPES = (  # in the order of pictures
    *("attention query", "attention key", "attention value", "attention q, k, v", "attention output"),
    *("MLP in", "MLP out", CONVOLUTIONS, NORMS, "biases", "scales", "embeddings", OTHER),
)


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
        labels.append(".".join(numbers) or ("after" if in_blocks else "before"))
    return labels
