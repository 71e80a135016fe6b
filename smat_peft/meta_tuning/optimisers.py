"""What one update does with the gradients (METHOD 8)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from smat_peft.errors import ConfigurationError
from smat_peft.experts.gates import clamp_gates_
from smat_peft.meta_tuning.arguments import MetaTuningArguments
from smat_peft.meta_tuning.learner import MetaLearner
from smat_peft.meta_tuning.prototype_learner import PrototypeLearner
from smat_peft.tuner.adapters import adapter_gates

FUSED_ON = ("cpu", "cuda")


class ParameterGroups:
    """The parameters that meta-tuning learns, by what is done with them; each maps a name to a parameter.

    `other` are those of an adapter without experts.

    Raises:
        ConfigurationError: A parameter is trainable that none of these is, such as one of `modules_to_save`.
    """

    def __init__(self, learner: MetaLearner | PrototypeLearner) -> None:
        names = {id(parameter): name for name, parameter in learner.named_parameters()}

        def trained(parameters: Any) -> dict[str, nn.Parameter]:
            return {names[id(p)]: p for p in parameters if p.requires_grad}

        self.delta, self.gates, self.multipliers, self.router, self.other = ({}, {}, {}, {}, {})
        if isinstance(learner, PrototypeLearner):
            self.other = trained(learner.parameters())
            return
        adapter = learner.adapter_name
        adapted = list(adapter_gates(learner.model, adapter))
        self.delta = trained(layer.smat_delta[adapter][name] for layer, name, _ in adapted)
        self.gates = trained(gates for _, _, gates in adapted)
        self.multipliers = trained([learner.multipliers])
        self.router = trained(learner.router.parameters()) if learner.router is not None else {}
        others = [name for name, p in learner.named_parameters() if p.requires_grad and name not in self.all()]
        if others:
            raise ConfigurationError(
                f"meta-tuning trains delta, gates and router, and {others[0]} is trainable, too: leave out "
                "modules_to_save, or freeze it"
            )

    def all(self) -> dict[str, nn.Parameter]:
        """Every learned parameter by its name."""
        return self.delta | self.gates | self.multipliers | self.router | self.other


def create_optimisers(groups: ParameterGroups, arguments: MetaTuningArguments) -> list[Optimizer]:
    """SGD for delta, gates and multipliers; AdamW for a router, and for an adapter without experts."""
    momentum, decay = arguments.delta_momentum, arguments.delta_weight_decay
    descending: list[dict[str, Any]] = [
        {"params": groups.delta, "lr": arguments.delta_lr, "momentum": momentum, "weight_decay": decay},
        {"params": groups.gates, "lr": arguments.gate_lr},
        {"params": groups.multipliers, "lr": arguments.multiplier_lr},
    ]
    router: dict[str, Any] = {
        "params": groups.router,
        "lr": arguments.router_lr,
        "weight_decay": arguments.router_weight_decay,
    }
    other: dict[str, Any] = {"params": groups.other, "lr": arguments.delta_lr, "weight_decay": decay}
    fused = next(iter(groups.all().values())).device.type in FUSED_ON or None  # None: what torch thinks best
    return [
        kind(present, fused=fused)
        for kind, parts in ((SGD, descending), (AdamW, [router, other]))
        if (present := [part | {"params": list(part["params"].values())} for part in parts if part["params"]])
    ]


def clip_gradients(groups: ParameterGroups, arguments: MetaTuningArguments) -> Tensor:
    """Clip the gates' and the router's gradients, each by their norm together; returns the norm of all gradients."""
    norms = [
        nn.utils.clip_grad_norm_(groups.gates.values(), arguments.max_gate_grad_norm),
        nn.utils.clip_grad_norm_(groups.router.values(), arguments.max_router_grad_norm),
        nn.utils.get_total_norm(p.grad for p in (groups.delta | groups.other).values() if p.grad is not None),
    ]
    device = next(iter(groups.all().values())).device
    return torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms]))


def clamp_gates(groups: ParameterGroups) -> None:
    """Keep all gates within their limits; done once, after each update."""
    for gates in groups.gates.values():
        clamp_gates_(gates)
