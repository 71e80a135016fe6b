"""MetaTuningArguments: how the experts are learned, with the method's constants as defaults (METHOD 1, 8, 9, 13)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from smat_peft.episodes.cache import DEFAULT_MEBIBYTES
from smat_peft.errors import ConfigurationError


def _argument(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class MetaTuningArguments:
    """Arguments of [`MetaLearner`] and [`MetaTrainer`], for transformers' `HfArgumentParser`."""

    output_dir: str = _argument("outputs/meta_tune", "Folder for the adapter, its card, figures and checkpoints.")
    seed: int = _argument(0, "Seed of the adapter's first values, of the episodes and of the router's noise.")
    max_steps: int = _argument(12_500, "Number of updates; 0 leaves an adapter as it is.")
    episodes_per_step: int = _argument(4, "Episodes of one update, over all processes.")

    episodes_per_merge: int = _argument(
        4, "Episodes of an update that share one read of the gates; each takes as much memory as two backbones."
    )
    max_batch_size: int | None = _argument(
        None, "Images that go through the backbone at a time; more are computed again in the backward pass."
    )
    torch_compile: bool | None = _argument(
        None, "Compile the mixing of experts; by default in runs that are long enough to gain by it."
    )

    delta_lr: float = _argument(1e-4, "Learning rate of the delta (SGD).")
    delta_momentum: float = _argument(0.9, "Momentum of the delta.")
    delta_weight_decay: float = _argument(1e-4, "Weight decay of the delta.")
    gate_lr: float = _argument(1e6, "Learning rate of the gates (SGD without momentum).")
    max_gate_grad_norm: float = _argument(5.0, "Largest norm of all gates' gradients together.")
    multiplier_lr: float = _argument(2e-3, "Learning rate of the sparsity constraint's multipliers.")
    router_lr: float = _argument(1e-4, "Learning rate of the router (AdamW).")
    router_weight_decay: float = _argument(1e-2, "Weight decay of the router.")
    max_router_grad_norm: float = _argument(1.0, "Largest norm of all the router's gradients together.")

    warmup_ratio: float = _argument(0.1, "Share of the run in which learning rates rise from 0.")
    warmup_steps: int | None = _argument(None, "The same as a number of updates, instead of the share.")
    lr_decay_steps: int | None = _argument(None, "Update at which the cosine reaches 0; the last one by default.")
    lr_interval: int = _argument(1, "Learning rates change only every so many updates (the reference: 500).")
    temperature_ratio: float = _argument(0.36, "Share of the run in which the router's temperature falls.")
    temperature_episodes: int | None = _argument(None, "The same as a number of episodes, instead of the share.")

    logit_scale: float = _argument(10.0, "Scale of the cosine logits.")
    inner_lr: float = _argument(1e-3, "Learning rate of the one step on the support; 0 leaves the step out.")
    distillation_weight: float = _argument(0.25, "Share of distillation in the loss; 0 leaves its passes out.")
    distillation_temperature: float = _argument(2.0, "Temperature of distillation.")
    adapted_teacher_weight: float = _argument(1.0, "Weight of the teacher that took a step on the query; 0: without.")
    adapted_teacher_lr: float = _argument(5e-3, "Learning rate of that teacher's step.")
    pretrained_teacher_weight: float = _argument(1.0, "Weight of the pre-trained teacher; 0: without.")
    sparsity_weight: float = _argument(1.0, "Weight of the sparsity constraint; 0 leaves it out.")
    router_z_weight: float = _argument(1e-4, "Weight of the router's logits' mean square; 0: without.")

    validation_steps: int = _argument(500, "Validate every so many updates, and at the end; 0: never.")
    checkpointing_steps: int = _argument(500, "Write a checkpoint every so many updates; 0: only when stopped.")
    save_total_limit: int | None = _argument(2, "Checkpoints to keep; 0: all.")
    resume_from_checkpoint: str | None = _argument(None, "'latest', or the folder of a checkpoint, to go on from.")
    resume_anyway: bool = _argument(False, "Resume also where backbone, adapter, data or arguments are not the same.")
    logging_steps: int = _argument(10, "Average and log the figures of so many updates.")
    max_skipped_steps: int = _argument(5, "Stop after so many updates in a row whose loss was not finite.")
    dataloader_num_workers: int = _argument(0, "Processes that load episodes ahead.")
    dataloader_cache_mib: int = _argument(
        DEFAULT_MEBIBYTES, "Most MiB of decoded images that each loading process keeps; 0: none."
    )

    def __post_init__(self) -> None:
        for name, value in vars(self).items():  # an infinite norm is one that never clips
            finite = not isinstance(value, float) or math.isfinite(value) or name.startswith("max_")
            self._require(finite, name, "a finite number")
        self._require(0 <= self.seed < 2**32, "seed", "in [0, 2**32)")
        for name, least in (
            ("warmup_steps", 0),
            ("lr_decay_steps", 1),
            ("temperature_episodes", 1),
            ("max_batch_size", 1),
        ):
            self._require(getattr(self, name) is None or getattr(self, name) >= least, name, f"at least {least}")
        for name in (
            "episodes_per_step",
            "episodes_per_merge",
            "lr_interval",
            "logging_steps",
            "max_skipped_steps",
        ):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        for name in (
            *("delta_lr", "gate_lr", "multiplier_lr", "router_lr", "inner_lr", "adapted_teacher_lr"),
            *("adapted_teacher_weight", "pretrained_teacher_weight", "sparsity_weight", "router_z_weight"),
            *("delta_weight_decay", "router_weight_decay", "validation_steps", "checkpointing_steps", "max_steps"),
            *("dataloader_num_workers", "dataloader_cache_mib"),
        ):
            self._require(getattr(self, name) >= 0, name, "at least 0")
        for name in ("warmup_ratio", "temperature_ratio", "distillation_weight"):
            self._require(0 <= getattr(self, name) <= 1, name, "in [0, 1]")
        for name in ("logit_scale", "distillation_temperature", "max_gate_grad_norm", "max_router_grad_norm"):
            self._require(getattr(self, name) > 0, name, "above 0")
        self._require((self.save_total_limit or 0) >= 0, "save_total_limit", "at least 0")
        if self.lr_decay_steps is not None:
            warmup = self.learning_rate_warmup
            self._require(self.lr_decay_steps > warmup, "lr_decay_steps", f"above the {warmup} of the warm-up")
        self._require(self.output_dir != "", "output_dir", "the name of a folder")
        self._require(0 <= self.delta_momentum < 1, "delta_momentum", "in [0, 1)")

    @property
    def learning_rate_warmup(self) -> int:
        """Updates in which learning rates rise."""
        return round(self.warmup_ratio * self.max_steps) if self.warmup_steps is None else self.warmup_steps

    @property
    def router_temperature_episodes(self) -> int:
        """Episodes in which the router's temperature falls."""
        if self.temperature_episodes is not None:
            return self.temperature_episodes
        return max(1, round(self.temperature_ratio * self.max_steps * self.episodes_per_step))

    def _require(self, holds: bool, name: str, wanted: str) -> None:
        if not holds:
            raise ConfigurationError(f"--{name} must be {wanted}, got {getattr(self, name)!r}")
