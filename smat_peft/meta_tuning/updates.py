"""One update from the episodes of all processes, or none where the loss or a gradient is not finite (METHOD 8)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer

from smat_peft.episodes.episode import Episode
from smat_peft.errors import SmatError
from smat_peft.meta_tuning.arguments import MetaTuningArguments
from smat_peft.meta_tuning.learner import MetaLearner
from smat_peft.meta_tuning.optimisers import ParameterGroups, clamp_gates, clip_gradients
from smat_peft.meta_tuning.processes import everywhere
from smat_peft.meta_tuning.prototype_learner import PrototypeLearner

logger = logging.getLogger(__name__)


class Updates:
    """Does the updates of a run.

    Args:
        learner: Computes losses and figures.
        prepared: The same as Accelerate has wrapped it.
        groups: What is learned.
        optimisers: What learns it: torch's own, for Accelerate's would move a gradient scaler on after each of them.
        accelerator: Says how the run is done.
        arguments: Limits of the gradients, and of updates that are left out.

    Attributes:
        skipped: Updates that were left out.
        skipped_in_a_row: Those since the last that was not.
    """

    def __init__(
        self,
        learner: MetaLearner | PrototypeLearner,
        prepared: Any,
        groups: ParameterGroups,
        optimisers: Sequence[Optimizer],
        accelerator: Accelerator,
        arguments: MetaTuningArguments,
    ) -> None:
        self.learner, self.prepared, self.groups, self.optimisers = learner, prepared, groups, optimisers
        self.accelerator, self.arguments = accelerator, arguments
        self.skipped = self.skipped_in_a_row = 0
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["initial_lr"] = group["lr"]

    def __call__(
        self, episodes: Sequence[Episode], rate_factor: float, uniform: Tensor | None = None
    ) -> dict[str, float] | None:
        """Do one update with all learning rates times `rate_factor`.

        Args:
            episodes: This process's share.
            rate_factor: Where the schedule is.
            uniform: Noise of the router: see [`MetaLearner`].

        Returns:
            The figures of this process; None where the update was left out.
        """
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * rate_factor
        scaler = self.accelerator.scaler
        if scaler is not None:
            self.learner.loss_scale = scaler.get_scale()
        loss = torch.stack(list(self.prepared(episodes, uniform).values())).sum()
        if not everywhere(self.accelerator, bool(torch.isfinite(loss))):
            self._skip(episodes)
            return None
        self.accelerator.backward(loss * self.accelerator.num_processes)  # processes' gradients are averaged
        if scaler is not None:
            for optimiser in self.optimisers:
                scaler.unscale_(optimiser)
        norm = clip_gradients(self.groups, self.arguments)
        if not torch.isfinite(norm):
            if not self._lower_loss_scale():
                self._skip(episodes)
            return None
        for optimiser in self.optimisers:
            if scaler is None:
                optimiser.step()
            else:
                scaler.step(optimiser)
        if scaler is not None:
            scaler.update()
        self.zero_gradients()
        clamp_gates(self.groups)
        self.skipped_in_a_row = 0
        figures = {name: self.learner.statistics[name].item() for name in self.learner.logged}
        return {"loss": loss.item() * self.accelerator.num_processes} | figures

    def zero_gradients(self) -> None:
        """Forget all gradients."""
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)

    @property
    def are_hopeless(self) -> bool:
        """Whether `max_skipped_steps` in a row were left out."""
        return self.skipped_in_a_row >= self.arguments.max_skipped_steps

    def give_up(self, step: int) -> None:
        """Raise a SmatError that names the episodes of the updates before `step` that were left out."""
        count, size = self.skipped_in_a_row, self.arguments.episodes_per_step
        first = max(0, step - count) * size
        raise SmatError(
            f"the loss was not finite in {count} updates in a row, those of training episodes {first} to "
            f"{step * size - 1} of seed {self.arguments.seed}; look at them with --resume_from_checkpoint latest "
            f"--replay_episodes {first}, or lower the learning rates"
        )

    def _skip(self, episodes: Sequence[Episode]) -> None:
        self.zero_gradients()
        self.skipped += 1
        self.skipped_in_a_row += 1
        names = ", ".join(f"{episode.domain} {episode.index}" for episode in episodes)
        logger.warning("an update is left out, its loss was not finite: episodes %s", names)

    def _lower_loss_scale(self) -> bool:
        """Answer gradients that are not finite as loss scaling does; False where scaling is not what is wrong."""
        scaler = self.accelerator.scaler
        if scaler is None:
            return False
        before = scaler.get_scale()
        scaler.update()
        self.zero_gradients()
        return bool(scaler.get_scale() < before and before > 1)
