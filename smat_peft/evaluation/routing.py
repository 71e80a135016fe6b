"""How the router mixes the experts: how evenly, and how much it depends on the task and on the domain."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smat_peft.errors import DataError
from smat_peft.evaluation.predictors import SMAT
from smat_peft.evaluation.records import Record
from smat_peft.evaluation.tables import TableStyle, render_table


@dataclass(frozen=True, eq=False)
class Routing:
    """Expert weights of some episodes, by domain.

    Attributes:
        weights: `[E, M]` for each domain.
    """

    weights: dict[str, NDArray[np.float64]]

    @classmethod
    def of(cls, records: Iterable[Record], predictor: str = SMAT) -> Routing:
        """The weights in a predictor's records.

        Raises:
            DataError: It has none.
        """
        by_domain: dict[str, list[tuple[float, ...]]] = {}
        for record in records:
            if record.predictor == predictor and record.expert_weights is not None:
                by_domain.setdefault(record.domain, []).append(record.expert_weights)
        if not by_domain:
            raise DataError(f"there are no expert weights in the records of {predictor!r}")
        return cls({domain: np.array(weights, dtype=np.float64) for domain, weights in by_domain.items()})

    def entropy(self, domain: str) -> float:
        """Mean entropy of an episode's weights as a share of the largest, log M: 1 where all experts weigh the same."""
        weights = self.weights[domain]
        if weights.shape[1] == 1:
            return 1.0
        logs = np.log(weights, where=weights > 0, out=np.zeros_like(weights))
        return float(-(weights * logs).sum(1).mean() / np.log(weights.shape[1]))

    def spread_within(self, domain: str) -> float:
        """Root mean squared distance of the weights of a domain's episodes from their mean."""
        return _spread(self.weights[domain])

    def spread_between(self) -> float:
        """Root mean squared distance of the domains' mean weights from the mean of these."""
        return _spread(np.array([weights.mean(0) for weights in self.weights.values()]))

    def as_dict(self) -> dict[str, object]:
        """All figures as plain data."""
        return {
            "spread_between_domains": self.spread_between(),
            "domains": {
                domain: {
                    "mean_weights": weights.mean(0).tolist(),
                    "entropy": self.entropy(domain),
                    "spread_within": self.spread_within(domain),
                }
                for domain, weights in self.weights.items()
            },
        }

    def table(self, style: TableStyle = "text") -> str:
        """A row a domain, and what it all means."""
        rows = [
            [domain, f"{self.entropy(domain):.3f}", f"{self.spread_within(domain):.3f}"]
            + [f"{weight:.3f}" for weight in weights.mean(0)]
            for domain, weights in self.weights.items()
        ]
        experts = len(rows[0]) - 3
        header = ["domain", "entropy", "spread", *(f"expert {number}" for number in range(experts))]
        legend = (
            "Expert weights that the router chose: entropy as a share of an even mix's, spread over episodes, mean. "
            f"Spread between the domains' means: {self.spread_between():.3f}."
        )
        return render_table(header, rows, "<" + ">" * (experts + 2), style) + "\n\n" + legend


def _spread(weights: NDArray[np.float64]) -> float:
    return float(np.sqrt(((weights - weights.mean(0)) ** 2).sum(1).mean()))
