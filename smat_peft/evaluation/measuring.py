"""What predictors do on one episode of a domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from smat_peft.episodes.episode import Episode
from smat_peft.episodes.sampling import EpisodeSampler
from smat_peft.evaluation.calibration import Calibration, Reliability, log_loss
from smat_peft.evaluation.manifest import ListedEpisodes
from smat_peft.evaluation.predictors import Predictor, predict
from smat_peft.evaluation.records import Record, Role


class Measured(NamedTuple):
    """A record, and what its queries add to its predictor's calibration."""

    record: Record
    calibration: Calibration


class Source(NamedTuple):
    """Episodes of a domain by number, and the numbers of those to measure."""

    episodes: EpisodeSampler | ListedEpisodes
    numbers: Sequence[int]


@dataclass(frozen=True)
class Measurement:
    """Measures predictors on the episodes of a domain.

    Attributes:
        predictors: By name.
        temperatures: By predictor, where one was fitted.
        episodes: By number.
        role: What the domain is for.
        seed: The training seed, for the records.
        adaptation: The kind of adaptation, for the records.
    """

    predictors: Mapping[str, Predictor]
    temperatures: Mapping[str, float]
    episodes: EpisodeSampler | ListedEpisodes
    role: Role
    seed: int | None
    adaptation: str

    def __call__(self, index: int) -> list[Measured]:
        """What each predictor did on the episode of this number."""
        episode = self.episodes[index]
        return [self._measure(name, predictor, episode) for name, predictor in self.predictors.items()]

    def _measure(self, name: str, predictor: Predictor, episode: Episode) -> Measured:
        logits, weights, rate = predict(name, predictor, episode)
        labels, temperature = episode.query_labels.cpu(), self.temperatures.get(name)
        calibrated = {}
        if temperature is not None:
            calibrated["calibrated_log_loss"] = log_loss(logits, labels, temperature)
        record = Record(
            predictor=name,
            domain=episode.domain,
            role=self.role,
            index=episode.index,
            ways=episode.ways,
            support=len(episode.support),
            queries=len(episode.query),
            accuracy=(logits.argmax(-1) == labels).double().mean().item(),
            expert_weights=None if weights is None else tuple(weights.tolist()),
            log_loss=log_loss(logits, labels),
            **calibrated,
            seed=self.seed,
            adaptation=self.adaptation,
            learning_rate=rate,
        )
        after = None if temperature is None else Reliability.of(logits, labels, temperature)
        return Measured(record, Calibration(Reliability.of(logits, labels), after))
