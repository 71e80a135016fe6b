"""What an evaluation measured, one record per episode and predictor, and the estimates made from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from smat_peft.errors import DataError
from smat_peft.evaluation.calibration import Calibration
from smat_peft.evaluation.statistics import Estimate, average_over_domains, estimate_difference, estimate_mean

Role = Literal["id", "dev_ood", "test_ood"]

# in the order of tables
ROLE_TITLES: dict[Role, str] = {"id": "ID", "dev_ood": "dev-OOD", "test_ood": "test-OOD"}


@dataclass(frozen=True)
class Record:
    """How one predictor did on one episode.

    Attributes:
        predictor: The predictor's name.
        domain: The domain's name.
        role: What the domain is for.
        index: The episode's number within the domain; equal numbers of a domain mean equal episodes.
        ways: Number of classes.
        support: Number of support images.
        queries: Number of query images.
        accuracy: Share of the queries whose largest logit is their own class's.
        expert_weights: How the predictor mixed the experts, if it did.
        log_loss: Mean negative log-likelihood of the queries' classes, in nats; NaN if it was not measured.
        calibrated_log_loss: The same with the predictor's temperature; NaN where none was fitted.
        seed: The training seed of what was measured; None where nothing was trained.
        adaptation: What was done on the support: `"prototype"`, `"full"` or `"lora"`.
        learning_rate: Of fine-tuning, if there was any.
    """

    predictor: str
    domain: str
    role: Role
    index: int
    ways: int
    support: int
    queries: int
    accuracy: float
    expert_weights: tuple[float, ...] | None = None
    log_loss: float = math.nan
    calibrated_log_loss: float = math.nan
    seed: int | None = None
    adaptation: str = "prototype"
    learning_rate: float | None = None


@dataclass(frozen=True)
class BeforeAfter:
    """A figure of a predictor as it is, and with its temperature; NaN where that is not known."""

    before: float
    after: float


@dataclass(frozen=True)
class Evaluation:
    """The records of an evaluation. Accuracies and estimates are shares (0 to 1), not percentages.

    Attributes:
        records: One for each predictor and episode.
        calibration: By predictor and domain, over all its queries.
        temperatures: By predictor, where one was fitted.
        settings: How episodes were drawn and what was done on them.
    """

    records: Sequence[Record]
    calibration: Mapping[tuple[str, str], Calibration] = field(default_factory=dict)
    temperatures: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def predictors(self) -> list[str]:
        """Names of the predictors, in the order in which they were given."""
        return list(dict.fromkeys(record.predictor for record in self.records))

    @cached_property
    def domains(self) -> dict[str, Role]:
        """Each domain's role, roles in the order of tables."""
        roles = {record.domain: record.role for record in self.records}
        return {name: role for wanted in ROLE_TITLES for name, role in roles.items() if role == wanted}

    @property
    def roles(self) -> list[Role]:
        """The roles that occur, in the order of tables."""
        return list(dict.fromkeys(self.domains.values()))

    def accuracies(self, predictor: str, domain: str) -> list[float]:
        """Accuracies by episode, in the order of the episodes' numbers."""
        if (predictor, domain) not in self._accuracies:
            raise DataError(
                f"no records of predictor {predictor!r} on domain {domain!r}; "
                f"there are {', '.join(self.predictors)} on {', '.join(self.domains)}"
            )
        by_index = self._accuracies[predictor, domain]
        return [by_index[index] for index in sorted(by_index)]

    def accuracy(self, predictor: str, domain: str) -> Estimate:
        """Mean accuracy on a domain."""
        return estimate_mean(self.accuracies(predictor, domain))

    def difference(self, predictor: str, baseline: str, domain: str) -> Estimate:
        """Mean of the predictor's accuracy minus the baseline's, episode by episode.

        Raises:
            DataError: They were measured on different episodes.
        """
        ours, theirs = self.accuracies(predictor, domain), self.accuracies(baseline, domain)
        if self._accuracies[predictor, domain].keys() != self._accuracies[baseline, domain].keys():
            raise DataError(f"{predictor!r} and {baseline!r} were measured on different episodes of domain {domain!r}")
        return estimate_difference(ours, theirs)

    def average_accuracy(self, predictor: str, role: Role) -> Estimate:
        """Mean over the domains of a role of their mean accuracies."""
        return average_over_domains([self.accuracy(predictor, domain) for domain in self.domains_of(role)])

    def average_difference(self, predictor: str, baseline: str, role: Role) -> Estimate:
        """Mean over the domains of a role of their mean paired differences."""
        return average_over_domains([self.difference(predictor, baseline, domain) for domain in self.domains_of(role)])

    def log_loss(self, predictor: str, domain: str) -> BeforeAfter:
        """Mean negative log-likelihood on a domain's episodes, in nats."""
        records = [each for each in self.records if (each.predictor, each.domain) == (predictor, domain)]
        return BeforeAfter(
            statistics.fmean(record.log_loss for record in records),
            statistics.fmean(record.calibrated_log_loss for record in records),
        )

    def calibration_error(self, predictor: str, domain: str) -> BeforeAfter:
        """Expected calibration error over all queries of a domain, as a share (METHOD 11)."""
        calibration = self.calibration.get((predictor, domain))
        if calibration is None:
            return BeforeAfter(math.nan, math.nan)
        return BeforeAfter(calibration.before.error, math.nan if calibration.after is None else calibration.after.error)

    def of_domains(self, names: Collection[str]) -> Evaluation:
        """The part of the evaluation that is about these domains."""
        return replace(
            self,
            records=[record for record in self.records if record.domain in names],
            calibration={key: value for key, value in self.calibration.items() if key[1] in names},
        )

    def domains_of(self, role: Role) -> list[str]:
        """Names of the domains of a role."""
        return [name for name, its_role in self.domains.items() if its_role == role]

    @cached_property
    def _accuracies(self) -> dict[tuple[str, str], dict[int, float]]:
        table: dict[tuple[str, str], dict[int, float]] = {}
        for record in self.records:
            accuracies = table.setdefault((record.predictor, record.domain), {})
            if record.index in accuracies:
                raise DataError(
                    f"two records of {record.predictor!r} on {record.domain} {record.index}: those of several training "
                    "seeds or adaptations are compared by pair_records"
                )
            accuracies[record.index] = record.accuracy
        return table
