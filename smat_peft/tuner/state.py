"""What all SMAT layers of a model share: the task in force, and the configuration of each adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from smat_peft.tuner.config import SMATConfig


@dataclass(frozen=True)
class Task:
    """The weights of one task, and the adapter they belong to: they are in force while it is active.

    Attributes:
        weights: Task weights by the base model's parameter names; a parameter that is not named keeps its pre-trained
            value.
        adapter: The adapter's name.
        reusable: Whether the next task may be written to these tensors: nobody else has them.
    """

    weights: dict[str, Tensor]
    adapter: str
    reusable: bool = False


@dataclass
class SharedState:
    """One object that every layer of a model refers to, so that it is found from any of them.

    Attributes:
        root: The base model.
        layers: Its SMAT layers, in the order in which they were made.
        task: The task that is set; None: experts are mixed evenly.
        configs: The configuration of each adapter.
    """

    root: nn.Module
    layers: list[Any] = field(default_factory=list)  # of SMATLayer, which knows this class
    task: Task | None = None
    configs: dict[str, SMATConfig] = field(default_factory=dict)

    def forget(self, adapter_name: str) -> None:
        """Leave nothing of an adapter that is deleted."""
        self.configs.pop(adapter_name, None)
        if self.task is not None and self.task.adapter == adapter_name:
            self.task = None
