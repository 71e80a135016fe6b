"""An adapter in packed form, parameter by parameter: for inference only, and small on disk as in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from smat_peft.errors import CheckpointError, ConfigurationError
from smat_peft.experts.packed import PackedGates, pack_gates
from smat_peft.experts.stored import FORMAT_VERSION, PARTS, decode, encode

CONTAINER = "smat_packed"  # of a layer: adapter -> parameter -> PackedParameter


class PackedParameter(nn.Module):
    """The packed gates and the delta of one parameter. A state dict holds their parts ([`smat_peft.experts.stored`]).

    Args:
        shape: The parameter's shape.
        gate_shape: The shape of one expert's gates.
        num_experts: M.
    """

    open: Tensor
    places: Tensor
    values: Tensor
    delta: Tensor

    def __init__(self, shape: torch.Size, gate_shape: torch.Size, num_experts: int) -> None:
        super().__init__()
        self.shape, self.gate_shape, self.num_experts = shape, gate_shape, num_experts
        self.is_loaded = False
        for name in ("open", "places", "values", "delta"):
            self.register_buffer(name, torch.empty(0), persistent=False)

    @property
    def gates(self) -> PackedGates:
        """The gates.

        Raises:
            CheckpointError: No file has been loaded.
        """
        if not self.is_loaded:
            raise CheckpointError("a packed adapter has no values of its own: load it with PeftModel.from_pretrained")
        return PackedGates(self.open, self.places, self.values, self.gate_shape)

    def fill(self, values: Tensor, delta: Tensor, *, exact: bool) -> None:
        """Hold gate values `[M, *gate_shape]`, exact or as 8 bits say them ([`rounded`]), and a delta `[*shape]`."""
        gates = pack_gates(values, exact=exact)
        self.open, self.places, self.values, self.delta = gates.open, gates.places, gates.values, delta
        self.is_loaded = True

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self.is_loaded:
            parts = encode(self.gates.dense(), self.delta, exact=self.values.dtype != torch.uint8)
        else:
            parts = dict.fromkeys(PARTS, self.delta)  # PEFT looks here for the names that a file may have
        destination.update({f"{prefix}{part}": tensor for part, tensor in parts.items()})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        parts = {part: state_dict[f"{prefix}{part}"] for part in PARTS if f"{prefix}{part}" in state_dict}
        if self.is_loaded and not parts:
            return  # another adapter is loaded
        parts = {part: tensor.to(self.delta.device) for part, tensor in parts.items()}
        try:
            values, delta = decode(parts, self.num_experts, self.gate_shape, self.shape)
        except ValueError as error:
            raise CheckpointError(
                f"the packed adapter is damaged, or for another model: {prefix[:-1]}: {error}"
            ) from error
        self.fill(values, delta, exact=parts["values"].dtype != torch.uint8)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedParameter:
        """Go to another device, but keep the types: a delta in fewer bits would no longer be what was packed."""
        super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), recurse)
        return self


def check_header(header: Any) -> None:
    """Refuse a packed form that is not known here.

    Raises:
        CheckpointError: A newer version of the format, or no version at all.
    """
    version = header.get("format_version") if isinstance(header, dict) else None
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(f"SMATConfig: packed must be the header of a packed adapter, got {header!r}")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"the adapter is packed in version {version} of the format, and this smat_peft reads up to version "
            f"{FORMAT_VERSION}: install a newer one"
        )


def refuse_training(adapter_name: str) -> NoReturn:
    """Say that a packed adapter cannot be trained, and what can.

    Raises:
        ConfigurationError: Always.
    """
    raise ConfigurationError(
        f"adapter {adapter_name!r} is packed for inference: it has no gate logits and cannot be trained. Train the "
        "adapter that it was packed from, or load this one without is_trainable=True"
    )
