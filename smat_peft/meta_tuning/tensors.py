"""Every tensor that a run changes, by name: what its checkpoints hold. All others are what it depends on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from smat_peft.errors import CheckpointError
from smat_peft.meta_tuning.learner import MetaLearner
from smat_peft.meta_tuning.optimisers import ParameterGroups
from smat_peft.meta_tuning.prototype_learner import PrototypeLearner

MODEL, OPTIMISER = "model/", "optimiser/"  # before the names of what is learned, and of the optimisers' own


class RunTensors:
    """The tensors of a run.

    Args:
        learner: Holds the model, and the router if there is one.
        groups: What is learned.
        optimisers: What learns it.
    """

    def __init__(
        self, learner: MetaLearner | PrototypeLearner, groups: ParameterGroups, optimisers: Sequence[Optimizer]
    ) -> None:
        self.learner, self.groups, self.optimisers = learner, groups, optimisers

    def learned(self) -> dict[str, Tensor]:
        """The adapter and the multipliers, themselves."""
        buffers = {} if self.learner.router is None else dict(self.learner.router.named_buffers())
        return {MODEL + name: tensor.detach() for name, tensor in self.groups.all().items()} | {
            f"{MODEL}router.{name}": tensor for name, tensor in buffers.items()
        }

    def all(self) -> dict[str, Tensor]:
        """The same with the optimisers' state."""
        names = {id(parameter): name for name, parameter in self.groups.all().items()}
        return self.learned() | {
            f"{OPTIMISER}{names[id(parameter)]}/{key}": value
            for optimiser in self.optimisers
            for parameter, state in optimiser.state.items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }

    def frozen(self) -> dict[str, Tensor]:
        """What the run does not change: the backbone, and what of an adapter is not learned."""
        places = {tensor.data_ptr() for tensor in self.learned().values()}
        state: dict[str, Tensor] = self.learner.model.state_dict()
        return {name: tensor for name, tensor in state.items() if tensor.data_ptr() not in places}

    @torch.no_grad()
    def load_learned(self, tensors: dict[str, Tensor], source: Path) -> None:
        """Copy what [`learned`] returned; nothing is copied unless all of it fits.

        Raises:
            CheckpointError: The tensors, from `source`, are of another model or adapter.
        """
        own = self.learned()
        unknown = sorted(name for name in tensors if name.startswith(MODEL) and name not in own)
        if unknown:
            raise CheckpointError(f"{source} is of another model or adapter: this one has no {unknown[0]}")
        for name, tensor in own.items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                raise CheckpointError(f"{source} is of another model or adapter: {name} is missing or of another shape")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def load(self, tensors: dict[str, Tensor], source: Path) -> None:
        """Take what [`all`] returned; errors as those of [`load_learned`]."""
        self.load_learned(tensors, source)
        learned = self.groups.all()
        owners = {
            id(parameter): optimiser
            for optimiser in self.optimisers
            for group in optimiser.param_groups
            for parameter in group["params"]
        }
        for name, tensor in tensors.items():
            if name.startswith(OPTIMISER):
                parameter_name, _, key = name.removeprefix(OPTIMISER).rpartition("/")
                if parameter_name not in learned:
                    raise CheckpointError(f"{source} is of another model or adapter: this one has no {parameter_name}")
                parameter = learned[parameter_name]
                owners[id(parameter)].state[parameter][key] = tensor.to(parameter.device)
