"""Training episodes seen once more, to find out which of them has a loss that is not finite."""

from __future__ import annotations

from collections.abc import Sequence

from smat_peft.errors import ConfigurationError
from smat_peft.evaluation.tables import render_table
from smat_peft.meta_tuning.trainer import MetaTrainer


def check_replay(numbers: Sequence[int]) -> None:
    """Raise a ConfigurationError unless there can be training episodes of these numbers."""
    for number in numbers:
        if number < 0:
            raise ConfigurationError(f"--replay_episodes are numbers of episodes from 0 on, got {number}")


def format_replay(trainer: MetaTrainer, numbers: Sequence[int]) -> str:
    """The losses of training episodes as a table, with the norm of all gradients; changes nothing."""
    replays = trainer.replay(numbers)
    terms = list(replays[0].terms)
    rows = [
        [
            *(str(replay.episode.index), replay.episode.domain),
            *(str(count) for count in (replay.episode.ways, len(replay.episode.support), len(replay.episode.query))),
            *(f"{replay.terms[term]:.4g}" for term in terms),
            f"{replay.gradient_norm:.4g}",
        ]
        for replay in replays
    ]
    titles = ["episode", "domain", "ways", "support", "query", *terms, "gradient norm"]
    return render_table(titles, rows, "><" + ">" * (len(titles) - 2), "text")
