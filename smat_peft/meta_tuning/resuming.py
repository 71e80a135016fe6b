"""Leaving a run and going on with it as if nothing had been."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smat_peft.errors import CheckpointError
from smat_peft.files import remove_leftovers
from smat_peft.meta_tuning.best import BestAdapter
from smat_peft.meta_tuning.checkpoints import (
    checkpoints,
    load_checkpoint,
    prune_checkpoints,
    refuse_other_run,
    refuse_to_go_back,
    save_checkpoint,
    step_of,
)
from smat_peft.meta_tuning.identity import differences

if TYPE_CHECKING:
    from smat_peft.meta_tuning.trainer import MetaTrainer

logger = logging.getLogger(__name__)


def save_run(trainer: MetaTrainer) -> None:
    """Write all that has state: in one process, while the others wait.

    Nothing draws from a global generator of random numbers: episodes and noise are functions of their numbers.
    """
    trainer.run_log.average_processes()
    if trainer.accelerator.is_main_process:
        scaler = trainer.accelerator.scaler
        state = {
            "step": trainer.step,
            "seconds": trainer.seconds,
            "is_between_updates": trainer.is_between_updates,
            "best": [trainer.best.score, trainer.best.step],
            "skipped": [trainer.updates.skipped, trainer.updates.skipped_in_a_row],
            "log": trainer.run_log.records,
            "window": trainer.run_log.window,
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        save_checkpoint(trainer.output_dir, trainer.step, trainer.tensors.all(), state, trainer.description)
        if trainer.arguments.save_total_limit:
            prune_checkpoints(trainer.output_dir, trainer.arguments.save_total_limit)
        trainer.best.prune()
    trainer.accelerator.wait_for_everyone()


def resume_run(trainer: MetaTrainer, folder: Path) -> None:
    """Take what [`save_run`] wrote to a folder."""
    refuse_to_go_back(trainer.output_dir, folder)
    tensors, state, run = load_checkpoint(folder)
    if "best" not in state:
        state = _of_format_1(state, folder)
    differing, only_rounding = differences(run, trainer.description)
    if differing and not trainer.arguments.resume_anyway:
        raise CheckpointError(
            f"{folder} is of another run: {'; '.join(differing)}. Give what it was made with, or --resume_anyway"
        )
    for phrase in [*differing, *only_rounding]:
        logger.warning("the end will not be the same to the bit: %s", phrase)
    trainer.tensors.load(tensors, folder)
    if trainer.accelerator.scaler is not None and state["scaler"]:
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    trainer.earlier_seconds = state.get("seconds", 0.0)  # of an older version's: not known
    trainer.step, trainer.is_between_updates = state["step"], state["is_between_updates"]
    trainer.best.score, trainer.best.step = state["best"]
    trainer.updates.skipped, trainer.updates.skipped_in_a_row = state["skipped"]
    trainer.run_log.records, trainer.run_log.window = state["log"], state["window"]


def begin_run(trainer: MetaTrainer, resumed_from: Path | None) -> None:
    """Clear up what a run that died has left, in the process that holds the lock on the output directory."""
    best, output_dir = trainer.best, trainer.output_dir
    if resumed_from is None:
        refuse_other_run(output_dir)
    for folder in (output_dir, best.folder):
        remove_leftovers(folder)
    best.drop_later()
    if resumed_from is not None and best.step is not None and resumed_from.parent.resolve() != output_dir.resolve():
        best.adopt(resumed_from.parent)


def _of_format_1(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The state that format 1 wrote, as today's: checkpoints came last in a step, and one best adapter was kept."""
    best = checkpoints(BestAdapter(folder.parent).folder)
    return state | {"is_between_updates": True, "best": [state["best_score"], step_of(best[-1]) if best else None]}
