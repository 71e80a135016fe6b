"""MetaTrainer: learns the experts over many episodes, on Accelerate, in the manner of transformers' Trainer."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from smat_peft.episodes.episode import Episode
from smat_peft.episodes.fixed import FixedEpisodes
from smat_peft.errors import RunStoppedError, SmatError
from smat_peft.files import moving_into
from smat_peft.meta_tuning.arguments import MetaTuningArguments
from smat_peft.meta_tuning.batches import Episodes, batches, check_count
from smat_peft.meta_tuning.best import BestAdapter
from smat_peft.meta_tuning.checkpoints import find_checkpoint
from smat_peft.meta_tuning.identity import describe_run
from smat_peft.meta_tuning.learner import MetaLearner
from smat_peft.meta_tuning.lock import output_lock
from smat_peft.meta_tuning.optimisers import ParameterGroups, create_optimisers
from smat_peft.meta_tuning.processes import anywhere, check_processes, create_accelerator, is_of_lost_process
from smat_peft.meta_tuning.prototype_learner import PrototypeLearner
from smat_peft.meta_tuning.resuming import begin_run, resume_run, save_run
from smat_peft.meta_tuning.run_log import RunLog
from smat_peft.meta_tuning.schedules import warmup_cosine
from smat_peft.meta_tuning.signals import StopSignals
from smat_peft.meta_tuning.tensors import RunTensors
from smat_peft.meta_tuning.updates import Updates
from smat_peft.tuner.adapters import has_experts
from smat_peft.tuner.tasks import compile_interpolation

logger = logging.getLogger(__name__)

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
        ConfigurationError: The episodes of an update cannot be spread evenly over the processes, or the launcher shards
            what is learned, or accumulates gradients of its own.
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
        check_processes(self.accelerator, arguments.episodes_per_step)
        kind = MetaLearner if has_experts(model) else PrototypeLearner
        self.learner = kind(
            model.to(self.accelerator.device),
            arguments,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        if self.learner.router is not None and arguments.max_steps > 0:
            episodes = arguments.router_temperature_episodes
            self.learner.config.router_temperature_episodes = self.learner.router.temperature_episodes = episodes
        self.groups = ParameterGroups(self.learner)
        optimisers = create_optimisers(self.groups, arguments)
        self.prepared = self.accelerator.prepare(self.learner)
        self.updates = Updates(self.learner, self.prepared, self.groups, optimisers, self.accelerator, arguments)
        self.tensors = RunTensors(self.learner, self.groups, optimisers)
        self._compile()
        self.step = 0
        self.run_log = RunLog(self.accelerator)
        self.best = BestAdapter(self.output_dir)
        self.is_between_updates = True  # else what follows the last one is still to be done
        self.earlier_seconds = 0.0  # of training, before this process went on with it
        self._started: float | None = None
        self._resumed_from: Path | None = None
        if arguments.resume_from_checkpoint:
            self.resume(find_checkpoint(self.output_dir, arguments.resume_from_checkpoint))

    @property
    def skipped(self) -> int:
        """Updates that were left out."""
        return self.updates.skipped

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before a run was cut and gone on with among them."""
        return self.earlier_seconds + (0.0 if self._started is None else time.perf_counter() - self._started)

    @property
    def log(self) -> list[dict[str, Any]]:
        """Figures by step."""
        return self.run_log.records

    @property
    def output_dir(self) -> Path:
        """Where everything is written."""
        return Path(self.arguments.output_dir)

    # ----- the run -----

    def train(self) -> list[dict[str, Any]]:
        """Run to `max_steps` and leave the model with the adapter that validated best; returns the log.

        Raises:
            DataError: There are fewer training episodes than the run takes, or one cannot be made.
            CheckpointError: Where the output directory holds another run, or is in use by one, or cannot be written to.
            RunStoppedError: After SIGINT or SIGTERM, with a checkpoint of the last update.
            SmatError: After `max_skipped_steps` updates in a row whose loss was not finite, with a checkpoint, too; or
                where another process of the run is gone.
        """
        check_count(self.train_episodes, self.arguments.max_steps * self.arguments.episodes_per_step)
        lock = output_lock(self.output_dir) if self.accelerator.is_main_process else nullcontext()
        with lock, StopSignals() as signals:
            if self.accelerator.is_main_process:
                begin_run(self, self._resumed_from)
            self._started = time.perf_counter()
            try:
                self._run(signals)
            except RuntimeError as error:
                if self.accelerator.num_processes == 1 or not is_of_lost_process(error):
                    raise
                message = (
                    f"another process of this run is gone, in update {self.step}; go on with "
                    f"--resume_from_checkpoint latest ({' '.join(str(error).split())})"
                )
                logger.error(message)  # at once: the launcher may end this process before it says so itself
                raise SmatError(message) from error
            if self.best.step is not None:
                folder, tensors = self.best.load()
                self.tensors.load_learned(tensors, folder)
        self.earlier_seconds, self._started = self.seconds, None
        self._warn_of_failure()
        return self.log

    def update(self, episodes: Sequence[Episode], uniform: Tensor | None = None) -> None:
        """One update from this process's share of its episodes (METHOD 8)."""
        figures = self.updates(episodes, self.learning_rate_factor(self.step), uniform)
        if figures is not None:
            self.run_log.window.append(figures)

    def learning_rate_factor(self, step: int) -> float:
        """Factor of all learning rates in an update (METHOD 9); 0 after the end of the cosine."""
        arguments = self.arguments
        start = step - step % arguments.lr_interval
        end = arguments.max_steps if arguments.lr_decay_steps is None else arguments.lr_decay_steps
        return 0.0 if start >= end else warmup_cosine(start, arguments.learning_rate_warmup, end)

    def batches(self, workers: int) -> Iterator[list[Episode]]:
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

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Save the adapter, as PEFT does; each file is whole or absent.

        Raises:
            CheckpointError: It cannot be written.
        """
        if self.accelerator.is_main_process:
            with moving_into(Path(output_dir or self.output_dir)) as folder:
                # no vocabulary to look after, which PEFT would ask the Hub about
                self.learner.model.save_pretrained(str(folder), save_embedding_layers=False)  # type: ignore[operator]

    # ----- checkpoints -----

    @cached_property
    def description(self) -> dict[str, Any]:
        """What makes this run the run it is."""
        learner = self.learner
        return describe_run(
            learner.model,
            self.tensors.frozen(),
            self.arguments,
            self.train_episodes,
            self.validation_episodes,
            self.accelerator,
        )

    def save_checkpoint(self) -> None:
        """Write everything that has state, so that a resumed run goes on as if it had not been stopped.

        Raises:
            CheckpointError: It cannot be written. Those before it are whole.
        """
        save_run(self)

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: Where it is damaged, or of another run, unless `resume_anyway` is set; or where the output
                directory holds newer ones, or another run.
        """
        resume_run(self, folder)
        self._resumed_from = folder

    # ----- parts of the run -----

    def _run(self, signals: StopSignals) -> None:
        arguments = self.arguments
        bar = tqdm(
            total=arguments.max_steps,
            initial=self.step,
            desc="Meta-tuning",
            unit="update",
            disable=not self.accelerator.is_local_main_process,
        )
        if not self.is_between_updates:
            self._follow_up(bar)
        for episodes in self.batches(arguments.dataloader_num_workers):
            self.update(episodes)
            self.step += 1
            self.is_between_updates = False
            bar.update()
            if anywhere(self.accelerator, signals.received is not None):
                bar.close()
                self._stop(signals)
            self._follow_up(bar)
        bar.close()

    def _follow_up(self, bar: tqdm[Any]) -> None:
        """Log, validate and write checkpoints where an update was the last of an interval."""
        if self._is_due(self.arguments.logging_steps):
            means = self.run_log.close_window(self.step)
            bar.set_postfix_str(", ".join(f"{name} {value:.3f}" for name, value in means.items()))
        if self.validation_episodes and self._is_due(self.arguments.validation_steps):
            self._validate()
        self.is_between_updates = True
        if self.updates.are_hopeless or self._is_due(self.arguments.checkpointing_steps):
            self.save_checkpoint()
        if self.updates.are_hopeless:
            self.updates.give_up(self.step)

    def _stop(self, signals: StopSignals) -> None:
        self.save_checkpoint()
        name = signals.received.name if signals.received else "a signal to another process"
        raise RunStoppedError(
            f"Stopped by {name} after update {self.step} of {self.arguments.max_steps}, with a checkpoint. "
            "Go on with --resume_from_checkpoint latest"
        )

    def _is_due(self, interval: int) -> bool:
        return interval > 0 and (self.step % interval == 0 or self.step == self.arguments.max_steps)

    def _validate(self) -> None:
        device, episodes = self.accelerator.device, self.validation_episodes
        own = range(self.accelerator.process_index, len(episodes), self.accelerator.num_processes)
        total = float(sum(self.learner.validate(episodes[index].to(device)) for index in own))  # of no episode, too
        score = self.accelerator.reduce(torch.tensor(total, device=device), "sum").item() / len(episodes)
        self.run_log.add(self.step, {"validation_accuracy": score})
        if self.best.score is None or score > self.best.score:
            self.best.score, self.best.step = score, self.step
            if self.accelerator.is_main_process:
                self.best.save(self.tensors.learned())
                self.best.prune()
            self.accelerator.wait_for_everyone()

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
