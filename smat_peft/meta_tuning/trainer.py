"""MetaTrainer: learns the experts over many episodes, on Accelerate, in the manner of transformers' Trainer."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from tqdm.auto import tqdm

from smat_peft.episodes.episode import Episode
from smat_peft.episodes.fixed import FixedEpisodes
from smat_peft.errors import CheckpointError, ConfigurationError, SmatError
from smat_peft.meta_tuning.arguments import MetaTuningArguments
from smat_peft.meta_tuning.batches import Episodes, batches
from smat_peft.meta_tuning.checkpoints import (
    checkpoints,
    find_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    refuse_other_run,
    save_checkpoint,
)
from smat_peft.meta_tuning.learner import MetaLearner
from smat_peft.meta_tuning.optimisers import (
    ParameterGroups,
    clamp_gates,
    clip_gradients,
    create_optimisers,
    load_optimiser_tensors,
    optimiser_tensors,
)
from smat_peft.meta_tuning.prototype_learner import PrototypeLearner
from smat_peft.meta_tuning.schedules import warmup_cosine
from smat_peft.tuner.tasks import compile_interpolation, has_experts

logger = logging.getLogger(__name__)

MODEL, OPTIMISER = "model/", "optimiser/"  # the two kinds of tensors in a checkpoint
BEST = "best"  # folder of the best checkpoint so far
# Arguments that a resumed run may change without becoming another run.
FREE_ON_RESUME = frozenset(
    (
        *("output_dir", "resume_from_checkpoint", "checkpointing_steps", "save_total_limit"),
        *("dataloader_num_workers", "dataloader_cache_mib"),
    )
)
COMPILING_PAYS = 3e10  # gates x updates: some 100 s gained on two cores, for up to 40 s of compiling


class MetaTrainer:
    """Meta-tunes the active adapter of a model.

    Args:
        model: A model with SMAT layers; or one with another adapter, such as LoRA, trained by prototypes alone.
        arguments: How to learn.
        train: Training episodes by number; update `s` uses episodes `s * episodes_per_step` and following.
        validation: Fixed episodes of validation classes; the adapter that does best on them is kept.
        accelerator: Made from the launcher's environment where not given.

    Raises:
        ConfigurationError: The episodes of an update cannot be spread evenly over the processes.
        CheckpointError: The checkpoint to resume from is missing or damaged, or of a run with other arguments.

    Example:
        ```py
        >>> trainer = MetaTrainer(model, MetaTuningArguments(max_steps=100), EpisodeSampler(...), validation=[...])
        >>> trainer.train()
        >>> trainer.save_model()
        ```
    """

    def __init__(
        self,
        model: nn.Module,
        arguments: MetaTuningArguments,
        train: Episodes,
        validation: Sequence[Episode] | FixedEpisodes = (),
        *,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.accelerator = accelerator or create_accelerator()
        self.arguments = arguments
        self.train_episodes, self.validation_episodes = train, validation
        processes = self.accelerator.num_processes
        if arguments.episodes_per_step % processes:
            raise ConfigurationError(
                f"--episodes_per_step ({arguments.episodes_per_step}) must be a multiple of the {processes} processes"
            )
        kind = MetaLearner if has_experts(model) else PrototypeLearner
        self.learner = kind(
            model.to(self.accelerator.device),
            arguments,
            process_index=self.accelerator.process_index,
            num_processes=processes,
        )
        if self.learner.router is not None:
            episodes = arguments.router_temperature_episodes
            self.learner.config.router_temperature_episodes = self.learner.router.temperature_episodes = episodes
        self.groups = ParameterGroups(self.learner)
        optimisers = create_optimisers(self.groups, arguments)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["initial_lr"] = group["lr"]
        self.prepared, *self.optimisers = self.accelerator.prepare(self.learner, *optimisers)
        self._compile()
        self.step = 0
        self.best_score: float | None = None
        self.skipped = self.skipped_in_a_row = 0
        self.log: list[dict[str, Any]] = []
        self._window: list[dict[str, float]] = []
        if arguments.resume_from_checkpoint:
            self.resume(find_checkpoint(self.output_dir, arguments.resume_from_checkpoint))

    @property
    def output_dir(self) -> Path:
        """Where everything is written."""
        return Path(self.arguments.output_dir)

    # ----- the run -----

    def train(self) -> list[dict[str, Any]]:
        """Run to `max_steps` and leave the model with the adapter that validated best; returns the log.

        Raises:
            CheckpointError: Where the output directory holds another run.
            SmatError: After `max_skipped_steps` updates in a row whose loss was not finite.
        """
        arguments = self.arguments
        if not arguments.resume_from_checkpoint:
            refuse_other_run(self.output_dir)
        bar = tqdm(
            total=arguments.max_steps,
            initial=self.step,
            desc="Meta-tuning",
            unit="update",
            disable=not self.accelerator.is_local_main_process,
        )
        for episodes in self._batches(arguments.dataloader_num_workers):
            self.update(episodes)
            self.step += 1
            bar.update()
            if self._is_due(arguments.logging_steps):
                bar.set_postfix_str(self._log_window())
            if self.validation_episodes and self._is_due(arguments.validation_steps):
                self._validate()
            if self._is_due(arguments.checkpointing_steps):
                self.save_checkpoint()
        bar.close()
        self._load_best()
        self._warn_of_failure()
        return self.log

    def update(self, episodes: Sequence[Episode], uniform: Tensor | None = None) -> None:
        """One update from this process's share of its episodes (METHOD 8)."""
        factor = self.learning_rate_factor(self.step)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * factor
        if self.accelerator.scaler is not None:
            self.learner.loss_scale = self.accelerator.scaler.get_scale()
        loss = torch.stack(list(self.prepared(episodes, uniform).values())).sum()
        if not self._everywhere(torch.isfinite(loss)):
            self._skip(episodes)
            return
        self.accelerator.backward(loss * self.accelerator.num_processes)  # processes' gradients are averaged
        for optimiser in self.optimisers:
            self.accelerator.unscale_gradients(optimiser)
        norm = clip_gradients(self.groups, self.arguments)
        if self.accelerator.scaler is None and not torch.isfinite(norm):
            self._skip(episodes)
            return
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        clamp_gates(self.groups)
        self.skipped_in_a_row = 0
        statistics = {name: self.learner.statistics[name].item() for name in self.learner.logged}
        self._window.append({"loss": loss.item() * self.accelerator.num_processes} | statistics)

    def learning_rate_factor(self, step: int) -> float:
        """Factor of all learning rates in an update (METHOD 9)."""
        arguments = self.arguments
        start = step - step % arguments.lr_interval
        end = arguments.max_steps if arguments.lr_decay_steps is None else arguments.lr_decay_steps
        return warmup_cosine(start, arguments.learning_rate_warmup, end)

    def measure_seconds(self) -> float:
        """Seconds of one update, by trying the next, or 0 where none is left; everything is left as it was."""
        if self.step >= self.arguments.max_steps:
            return 0.0
        arrays = [*self.learner.buffers(), *self.groups.multipliers.values()]
        before = [array.detach().clone() for array in arrays]
        episodes = next(self._batches(workers=0))
        started = time.perf_counter()
        loss = torch.stack(list(self.prepared(episodes).values())).sum()
        self.accelerator.backward(loss)
        elapsed = time.perf_counter() - started
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            for array, value in zip(arrays, before, strict=True):
                array.copy_(value)
        return elapsed

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Save the adapter, as PEFT does."""
        if self.accelerator.is_main_process:
            folder = str(output_dir or self.output_dir)
            # no vocabulary to look after, which PEFT would ask the Hub about
            self.learner.model.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator]

    # ----- checkpoints -----

    def save_checkpoint(self) -> None:
        """Write everything that has state, so that a resumed run goes on as if it had not been stopped."""
        if self.accelerator.is_main_process:
            raw = [optimiser.optimizer for optimiser in self.optimisers]
            tensors = self._model_tensors()
            tensors |= {OPTIMISER + name: t for name, t in optimiser_tensors(self.groups, raw).items()}
            state = {
                "arguments": dataclasses.asdict(self.arguments),
                "step": self.step,
                "best_score": self.best_score,
                "skipped": [self.skipped, self.skipped_in_a_row],
                "log": self.log,
                "window": self._window,
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            }
            save_checkpoint(self.output_dir, self.step, tensors, state)
            if self.arguments.save_total_limit:
                prune_checkpoints(self.output_dir, self.arguments.save_total_limit)
        self.accelerator.wait_for_everyone()

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: Where it is damaged, or of a run with other arguments.
        """
        tensors, state = load_checkpoint(folder)
        now = dataclasses.asdict(self.arguments)
        differing = [
            f"{name} was {value!r}, is {now.get(name)!r}"
            for name, value in state["arguments"].items()
            if name not in FREE_ON_RESUME and now.get(name) != value
        ]
        if differing:
            raise CheckpointError(f"{folder} is of a run with other arguments: {'; '.join(differing)}")
        self._load_model_tensors(tensors, folder)
        raw = [optimiser.optimizer for optimiser in self.optimisers]
        moments = {name.removeprefix(OPTIMISER): t for name, t in tensors.items() if name.startswith(OPTIMISER)}
        load_optimiser_tensors(self.groups, raw, moments)
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.best_score = state["step"], state["best_score"]
        self.skipped, self.skipped_in_a_row = state["skipped"]
        self.log, self._window = state["log"], state["window"]

    def _model_tensors(self) -> dict[str, Tensor]:
        buffers = {} if self.learner.router is None else dict(self.learner.router.named_buffers())
        learned = self.groups.all()
        return {MODEL + name: t.detach() for name, t in learned.items()} | {
            f"{MODEL}router.{name}": t for name, t in buffers.items()
        }

    @torch.no_grad()
    def _load_model_tensors(self, tensors: dict[str, Tensor], folder: Path) -> None:
        own = self._model_tensors()
        unknown = sorted(name for name in tensors if name.startswith(MODEL) and name not in own)
        if unknown:
            raise CheckpointError(f"{folder} is of another model or adapter: this one has no {unknown[0]}")
        for name, tensor in own.items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                raise CheckpointError(f"{folder} is of another model or adapter: {name} is missing or of another shape")
            tensor.copy_(tensors[name])

    # ----- parts of the run -----

    def _batches(self, workers: int) -> Iterator[list[Episode]]:
        """This process's share of each update from the present step on."""
        arguments, processes = self.arguments, self.accelerator.num_processes
        first = self.step * arguments.episodes_per_step + self.accelerator.process_index
        numbers = range(first, arguments.max_steps * arguments.episodes_per_step, processes)
        return batches(
            self.train_episodes,
            numbers,
            size=arguments.episodes_per_step // processes,
            workers=workers,
            device=self.accelerator.device,
        )

    def _is_due(self, interval: int) -> bool:
        return interval > 0 and (self.step % interval == 0 or self.step == self.arguments.max_steps)

    def _everywhere(self, flag: Tensor) -> bool:
        return bool(self.accelerator.reduce(flag.float(), "sum") == self.accelerator.num_processes)

    def _skip(self, episodes: Sequence[Episode]) -> None:
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        self.skipped += 1
        self.skipped_in_a_row += 1
        names = ", ".join(f"{episode.domain} {episode.index}" for episode in episodes)
        logger.warning("update %d left out: its loss was not finite (episodes %s)", self.step, names)
        if self.skipped_in_a_row >= self.arguments.max_skipped_steps:
            raise SmatError(
                f"the loss was not finite in {self.skipped_in_a_row} updates in a row, last in update {self.step} "
                f"(episodes {names}, seed {self.arguments.seed}); lower the learning rates"
            )

    def _log_window(self) -> str:
        if not self._window:
            return ""
        means = {name: sum(w[name] for w in self._window) / len(self._window) for name in self._window[0]}
        local = torch.tensor(list(means.values()), device=self.accelerator.device)
        reduced = self.accelerator.reduce(local, "mean").tolist()
        record = {"step": self.step} | dict(zip(means, reduced, strict=True))
        self._window = []
        self.log.append(record)
        self.accelerator.log({name: value for name, value in record.items() if name != "step"}, step=self.step)
        return ", ".join(f"{name} {record[name]:.3f}" for name in ("loss", *self.learner.logged))

    def _validate(self) -> None:
        device, episodes = self.accelerator.device, self.validation_episodes
        own = range(self.accelerator.process_index, len(episodes), self.accelerator.num_processes)
        total = sum(self.learner.validate(episodes[index].to(device)) for index in own)
        score = self.accelerator.reduce(torch.tensor(total, device=device), "sum").item() / len(episodes)
        self.log.append({"step": self.step, "validation_accuracy": score})
        self.accelerator.log({"validation_accuracy": score}, step=self.step)
        if self.best_score is None or score > self.best_score:
            self.best_score = score
            if self.accelerator.is_main_process:
                best = save_checkpoint(self.output_dir / BEST, self.step, self._model_tensors(), {"score": score})
                for worse in checkpoints(self.output_dir / BEST):  # those of a run that was begun anew, too
                    if worse != best:
                        shutil.rmtree(worse)
            self.accelerator.wait_for_everyone()

    def _load_best(self) -> None:
        if self.best_score is not None:
            folder = find_checkpoint(self.output_dir / BEST, "latest")
            self._load_model_tensors(load_checkpoint(folder)[0], folder)

    def _compile(self) -> None:
        """Compile what the updates of a long run have in common."""
        gates = sum(parameter.numel() for parameter in self.groups.gates.values())
        pays = gates * self.arguments.max_steps > COMPILING_PAYS
        if gates and (pays if self.arguments.torch_compile is None else self.arguments.torch_compile):
            share = self.arguments.episodes_per_step // self.accelerator.num_processes
            num_tasks = min(self.arguments.episodes_per_merge, share)
            compile_interpolation(self.learner.model, num_tasks=num_tasks, training=True)

    def _warn_of_failure(self) -> None:
        if not self.accelerator.is_main_process:
            return
        for warning in self.learner.warnings():
            logger.warning(warning)
        if self.skipped:
            logger.warning("%d updates were left out: their loss was not finite", self.skipped)


def create_accelerator(**settings: Any) -> Accelerator:
    """An Accelerator whose gradient averaging suits MetaLearner; `settings` are Accelerator's own.

    The learner keeps its buffers equal on all processes itself, and a gate pattern or a parameter that the feature does
    not depend on has no gradient.
    """
    averaging = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
    return Accelerator(kwargs_handlers=[averaging], **settings)
