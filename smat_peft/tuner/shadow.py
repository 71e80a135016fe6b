"""Tensors that stand in front of a module's parameters while it is called.

They lie in the module's `__dict__`, which Python asks before `nn.Module` looks among the parameters. So any type of
module works, its hooks still run, and FSDP, which puts its views there itself, is not fooled.
"""

from __future__ import annotations

from torch import Tensor, nn


def shadow(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """Put tensors in front of a module's parameters of the same names; returns what [`unshadow`] needs."""
    before = {name: module.__dict__.get(name) for name in tensors}
    module.__dict__.update(tensors)
    return before


def unshadow(module: nn.Module, before: dict[str, Tensor | None]) -> None:
    """Undo [`shadow`]."""
    for name, tensor in before.items():
        if tensor is None:
            del module.__dict__[name]
        else:
            module.__dict__[name] = tensor
