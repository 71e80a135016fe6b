"""Evaluated gates that are kept from one task to the next, since evaluating them costs more than mixing them."""

from __future__ import annotations

import torch
from torch import Tensor

from smat_peft.experts.gates import gate_values, kept_type


class KeptGates:
    """Values of a layer's evaluated gates in half precision, by parameter, until the gates change."""

    def __init__(self) -> None:
        # beside the values what they were made of: the gates' memory, how often it had been written to, the temperature
        self._kept: dict[str, tuple[Tensor, int, float, Tensor]] = {}

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
        if name in self._kept:
            memory, version, as_of, values = self._kept[name]
            if (gates.data_ptr(), gates.device) == (memory.data_ptr(), memory.device) and (
                (gates._version, temperature) == (version, as_of)
            ):
                return values
        values = gate_values(gates, temperature).to(kept_type(base))
        self._kept[name] = (gates.detach(), gates._version, temperature, values)
        return values
