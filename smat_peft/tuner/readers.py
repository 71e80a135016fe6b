"""Modules that read a child's parameters without calling it, as CLIP its position embeddings at another size.

What an adapter does during a call of the child would never be seen there, and nothing would say so.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from functools import cache

from torch import nn


def reads_parameters_of(parent: nn.Module, child: str) -> bool:
    """Whether a method of a module's class reads a parameter of the child of that name, as in `self.child.weight`."""
    own = {name for name, _ in parent.get_submodule(child).named_parameters(recurse=False)}
    return any((child, name) in _attribute_chains(kind) for kind in _own_classes(type(parent)) for name in own)


def _own_classes(kind: type[nn.Module]) -> Iterator[type]:
    return (each for each in kind.__mro__ if issubclass(each, nn.Module) and each is not nn.Module)


@cache
def _attribute_chains(kind: type) -> frozenset[tuple[str, str]]:
    """All `.one.other` in the code of a class's methods, where it ends there: `.weight.dtype` takes no values."""
    functions = (inspect.unwrap(member) for member in vars(kind).values() if inspect.isfunction(member))
    found = set()
    for function in functions:
        steps = [step.argval if step.opname == "LOAD_ATTR" else None for step in dis.get_instructions(function)]
        for one, other, after in zip(steps, steps[1:], [*steps[2:], None], strict=False):
            if one and other and after not in ("dtype", "device", "shape"):
                found.add((one, other))
    return frozenset(found)
