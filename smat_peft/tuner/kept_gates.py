"""Evaluated gates that are kept from one task to the next, since evaluating them costs more than mixing them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from smat_peft.experts.gates import gate_values, kept_type

steps = 0  # of all optimisers since the first gates were kept: fused ones write to parameters that look unchanged


class KeptGates:
    """Values of a layer's evaluated gates in half precision, by parameter, until the gates change."""

    def __init__(self) -> None:
        _count_steps()
        # beside the values what they were made of: the gates' memory; writes to it, optimiser steps, the temperature
        self._kept: dict[str, tuple[Tensor, tuple[int, int, float], Tensor]] = {}

    def __reduce__(self) -> tuple[type[KeptGates], tuple[()]]:
        """A copy keeps nothing: its gates lie elsewhere in memory."""
        return KeptGates, ()

    @torch.no_grad()
    def values(self, name: str, gates: Tensor, temperature: float, base: torch.dtype) -> Tensor:
        """Values of the gates `[M, *gate_shape]` of the parameter `name`, which is of type `base`.

        What is written to the gates is seen, but not what is written to their `.data`.
        """
        if gates.is_inference():  # whether they have changed cannot be known
            return gate_values(gates, temperature).to(kept_type(base))
        now = gates._version, steps, temperature
        if name in self._kept:
            memory, then, values = self._kept[name]
            if (gates.data_ptr(), gates.device, now) == (memory.data_ptr(), memory.device, then):
                return values
        values = gate_values(gates, temperature).to(kept_type(base))
        self._kept[name] = (gates.detach(), now, values)
        return values


@cache
def _count_steps() -> None:
    def count(*_: Any) -> None:
        global steps
        steps += 1

    register_optimizer_step_post_hook(count)
