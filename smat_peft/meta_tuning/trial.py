"""What an update would do, without doing it: how long it takes, and what the losses of episodes are."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from smat_peft.episodes.episode import Episode
from smat_peft.meta_tuning.trainer import MetaTrainer


@dataclass(frozen=True)
class Replay:
    """A training episode seen once more.

    Attributes:
        episode: The episode.
        terms: Its weighted loss terms, as they would be were it alone in an update.
        gradient_norm: Norm of the gradients of everything that is learned.
    """

    episode: Episode
    terms: dict[str, float]
    gradient_norm: float


def measure_seconds(trainer: MetaTrainer) -> float:
    """Seconds of one update, by trying the next, or 0 where none is left; everything is left as it was."""
    if trainer.step >= trainer.arguments.max_steps:
        return 0.0
    episodes = next(trainer.batches(workers=0))
    with _left_as_it_was(trainer):
        started = time.perf_counter()
        loss = torch.stack(list(trainer.prepared(episodes).values())).sum()
        trainer.accelerator.backward(loss)
        return time.perf_counter() - started


def replay(trainer: MetaTrainer, numbers: Sequence[int]) -> list[Replay]:
    """Training episodes of these numbers, as the model of now sees them; everything is left as it was."""
    return [_replay(trainer, trainer.train_episodes[number].to(trainer.accelerator.device)) for number in numbers]


def _replay(trainer: MetaTrainer, episode: Episode) -> Replay:
    share = trainer.arguments.episodes_per_step
    with _left_as_it_was(trainer):
        terms = trainer.learner([episode])
        torch.stack(list(terms.values())).sum().backward()
        gradients = [p.grad for p in trainer.groups.all().values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
    return Replay(episode, {name: share * term.item() for name, term in terms.items()}, share * norm.item())


@contextmanager
def _left_as_it_was(trainer: MetaTrainer) -> Iterator[None]:
    arrays = [*trainer.learner.buffers(), *trainer.groups.multipliers.values()]
    before = [array.detach().clone() for array in arrays]
    try:
        yield
    finally:
        trainer.updates.zero_gradients()
        with torch.no_grad():
            for array, value in zip(arrays, before, strict=True):
                array.copy_(value)
