"""Ordinary training on one task with transformers' Trainer: the sparsity constraint, and an optimiser that suits gates.

Experts are then mixed evenly and there is no router to train. Usage:

    optimizer = create_optimizer(model, lr=1e-3, gate_lr=3e-2)
    Trainer(model, arguments, ..., optimizers=(optimizer, None), callbacks=[SparsityCallback()]).train()
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from smat_peft.errors import ConfigurationError
from smat_peft.experts.gates import clamp_gates_
from smat_peft.experts.router import even_weights
from smat_peft.meta_tuning.objective import multiplier_loss, reset_multipliers_, sparsity_loss
from smat_peft.tuner.adapters import active_adapter, adapter_config, adapter_gates, expected_l0, sparsity


def create_optimizer(model: nn.Module, *, lr: float, gate_lr: float, **settings: Any) -> AdamW:
    """AdamW over everything trainable, with a learning rate of its own for the gates.

    A gate has to travel about 2 units from where it starts until it is shut or fully open, a weight hundredths: with
    one rate for both the gates would hardly move. They have no momentum, which would carry them past the sparsity asked
    for, where a shut gate has no gradient to come back by; and no weight decay, which would pull them half open.

    Args:
        model: A model with SMAT layers, and possibly `modules_to_save`.
        lr: Learning rate of the delta and of modules trained whole.
        gate_lr: Learning rate of the gates.
        settings: Further arguments of [`torch.optim.AdamW`].
    """
    gates = {id(parameter) for parameter in _trained_gates(model)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [p for p in trained if id(p) not in gates], "lr": lr}]
    if gates:
        of_gates = [p for p in trained if id(p) in gates]
        groups.append({"params": of_gates, "lr": gate_lr, "weight_decay": 0.0, "betas": (0.0, 0.999)})
    return AdamW(groups, **settings)


class SparsityCallback(TrainerCallback, ExportableState):
    """Holds the gates of the active adapter at its configuration's `target_sparsity` while transformers' Trainer runs.

    Before each optimiser step it adds the gradient of `sum_m (target_sparsity - 1 + E[L0]_m) * multiplier_m / M` to the
    gates' own (METHOD 7.6 with even expert weights), and afterwards keeps the gates within their limits. Multipliers
    grow while their expert is too dense, and are saved in the Trainer's checkpoints. Logs gain `sparsity`, that of the
    gates in training.

    Args:
        multiplier_lr: Learning rate of the multipliers.
    """

    def __init__(self, multiplier_lr: float = 1.0) -> None:
        if multiplier_lr <= 0:
            raise ConfigurationError(f"SparsityCallback: multiplier_lr must be above 0, got {multiplier_lr}")
        self.multiplier_lr = multiplier_lr
        self.multipliers: list[float] | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint of the Trainer keeps."""
        return {"args": {"multiplier_lr": self.multiplier_lr}, "attributes": {"multipliers": self.multipliers}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the multipliers of the checkpoint that is resumed from; start from 0 otherwise."""
        self.multipliers = state.stateful_callbacks.get(type(self).__name__, self.state())["attributes"]["multipliers"]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Add the constraint's gradient and move the multipliers."""
        gates = _trained_gates(model)
        if not gates:  # a fixed pattern
            return
        closed, target = sparsity(model, training=True), adapter_config(model).target_sparsity
        weights = even_weights(len(closed), closed.device).weights
        multipliers = torch.tensor(self.multipliers or [0.0] * len(closed), device=closed.device, requires_grad=True)
        reset_multipliers_(multipliers, closed, target)
        loss = sparsity_loss(expected_l0(model), multipliers, weights, target)
        # Not by backward(): data-parallel wrappers take that for another pass of the model.
        for gate, gradient in zip(gates, torch.autograd.grad(loss, gates), strict=True):
            gate.grad = gradient if gate.grad is None else gate.grad.add_(gradient)
        (slope,) = torch.autograd.grad(multiplier_loss(closed, multipliers, weights, target), multipliers)
        self.multipliers = (multipliers - self.multiplier_lr * slope).tolist()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Keep the gates within their limits."""
        for gate in _trained_gates(model):
            clamp_gates_(gate)

    def on_log(self, args: Any, state: Any, control: Any, model: nn.Module, logs: Any, **kwargs: Any) -> None:
        """Add the sparsity to the log of a training step."""
        if "loss" in logs:
            logs["sparsity"] = state.log_history[-1]["sparsity"] = round(
                sparsity(model, training=True).mean().item(), 4
            )


def _trained_gates(model: nn.Module) -> list[Tensor]:
    return [gates for _, _, gates in adapter_gates(model, active_adapter(model)) if gates.requires_grad]
