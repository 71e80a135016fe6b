"""Tensors that stand in front of a module's parameters while it is called.

They lie in the module's `__dict__`, which Python asks before `nn.Module` looks among the parameters. So any type of
module works, its hooks still run, and FSDP, which puts its views there itself, is not fooled.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

Shadowed = dict[str, Any]
"""What was in the `__dict__` before, None where nothing was."""


def shadow(module: nn.Module, tensors: dict[str, Tensor]) -> Shadowed:
    """Put tensors in front of a module's parameters of the same names; returns what [`unshadow`] needs.

    What the module has computed of its own parameters and keeps (as LeViT its attention biases) is out of sight, too.
    """
    if not tensors:
        return {}
    inside = module.__dict__
    new: Shadowed = tensors | {name: {} for name in _caches(module)}
    before = {name: inside.get(name) for name in new}
    inside.update(new)
    return before


def unshadow(module: nn.Module, before: Shadowed) -> None:
    """Undo [`shadow`]."""
    for name, tensor in before.items():
        if tensor is None:
            del module.__dict__[name]
        else:
            module.__dict__[name] = tensor


def empty_caches(module: nn.Module) -> None:
    """Forget what a module has computed of its parameters, which are others now."""
    module.__dict__.update({name: {} for name in _caches(module)})


def _caches(module: nn.Module) -> list[str]:
    return [name for name, value in module.__dict__.items() if name.endswith("_cache") and isinstance(value, dict)]
