"""What all SMAT layers of a model share: the task in force, and the configuration of each adapter."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from smat_peft.tuner.config import SMATConfig


@dataclass
class SharedState:
    """One object that every layer of a model refers to, so that it is found from any of them.

    Attributes:
        root: The base model.
        weights: Task weights by the base model's parameter names; a parameter that is not named keeps its pre-trained
            value. None: no task, experts are mixed evenly.
        adapter: The adapter they were made from, where one was.
        configs: The configuration of each adapter.
    """

    root: nn.Module
    weights: dict[str, Tensor] | None = None
    adapter: str | None = None
    configs: dict[str, SMATConfig] = field(default_factory=dict)
