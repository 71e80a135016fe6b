"""What a run had learned at a checkpoint, given to a model to be measured."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from smat_peft.errors import CheckpointError
from smat_peft.meta_tuning.checkpoints import load_checkpoint
from smat_peft.meta_tuning.tensors import MODEL
from smat_peft.tuner.adapters import adapter_router, has_experts


@torch.no_grad()
def load_learned(model: nn.Module, folder: Path) -> int:
    """Give a model what a checkpoint of its training says was learned; returns the number of training tasks until then.

    Raises:
        CheckpointError: The checkpoint is damaged, or of another model or adapter.
    """
    tensors, state, run = load_checkpoint(folder)
    own: dict[str, Tensor] = {f"{MODEL}model.{name}": parameter for name, parameter in model.named_parameters()}
    router = adapter_router(model) if has_experts(model) else None
    if router is not None:
        own |= {f"{MODEL}router.{name}": buffer for name, buffer in router.named_buffers()}
    for name in tensors:
        if name.startswith((f"{MODEL}model.", f"{MODEL}router.")):
            if name not in own or own[name].shape != tensors[name].shape:
                raise CheckpointError(f"{folder} is of another model or adapter: this one has no {name}")
            own[name].copy_(tensors[name])
    return int(state["step"] * run["arguments"]["episodes_per_step"])
