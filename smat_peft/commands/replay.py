"""Training episodes seen once more, to find out which of them has a loss that is not finite."""

from __future__ import annotations

from collections.abc import Sequence

from smat_peft.errors import ConfigurationError
from smat_peft.evaluation.tables import render_table
from smat_peft.meta_tuning.trainer import MetaTrainer
from smat_peft.meta_tuning.trial import replay


def check_replay(numbers: Sequence[int]) -> None:
    """Raise a ConfigurationError unless there can be training episodes of these numbers."""
    for number in numbers:
        if number < 0:
            raise ConfigurationError(f"--replay_episodes are numbers of episodes from 0 on, got {number}")


def format_replay(trainer: MetaTrainer, numbers: Sequence[int]) -> str:
    """The losses of training episodes as a table, with the norm of all gradients; changes nothing."""
    replays = replay(trainer, numbers)
    terms = list(replays[0].terms)
    rows = [
        [
            *(str(seen.episode.index), seen.episode.domain),
            *(str(count) for count in (seen.episode.ways, len(seen.episode.support), len(seen.episode.query))),
            *(f"{seen.terms[term]:.4g}" for term in terms),
            f"{seen.gradient_norm:.4g}",
        ]
        for seen in replays
    ]
    titles = ["episode", "domain", "ways", "support", "query", *terms, "gradient norm"]
    return render_table(titles, rows, "><" + ">" * (len(titles) - 2), "text")
