"""How far probabilities can be trusted: temperature, log loss, and reliability by bins of confidence (METHOD 11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from smat_peft.errors import DataError

BINS = 10  # METHOD 11
TEMPERATURES = (0.02, 50.0)  # where all of few validation queries are classified rightly, the best one is 0


def log_loss(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood, in nats, of labels `[N]` under the softmax of `logits / temperature` `[N, C]`."""
    return F.cross_entropy(logits.double() / temperature, labels).item()


def fit_temperature(logits: Sequence[Tensor], labels: Sequence[Tensor]) -> float:
    """The temperature with the smallest mean negative log-likelihood over all queries of some episodes.

    It is convex in 1 / temperature (Guo et al. 2017), so that the minimum is the only one.

    Args:
        logits: Of each episode, `[N, C]`, each with its own number of classes.
        labels: Of each episode, `[N]`.

    Raises:
        DataError: There are no episodes.
    """
    if not logits:
        raise DataError("there are no validation episodes to fit a temperature on")
    widest = max(each.shape[1] for each in logits)
    padded = torch.cat([F.pad(each.double(), (0, widest - each.shape[1]), value=-torch.inf) for each in logits])
    all_labels = torch.cat(list(labels))
    bounds = np.log(TEMPERATURES)
    best = minimize_scalar(lambda log: log_loss(padded, all_labels, np.exp(log)), bounds=bounds, method="bounded")
    return float(np.exp(best.x))


@dataclass(frozen=True, eq=False)
class Reliability:
    """Queries by the confidence of their answer, in ten bins of equal width.

    Attributes:
        bins: `[3, 10]`: for each bin the number of queries, the sum of their confidences, the number of right answers.
    """

    bins: NDArray[np.float64]

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Reliability:
        """The reliability of the softmax of `logits / temperature` `[N, C]` for labels `[N]`."""
        confidence, answers = (logits.double() / temperature).softmax(-1).max(-1)
        bins = torch.ceil(confidence * BINS).long() - 1
        rows = (torch.ones_like(confidence), confidence, (answers == labels).double())
        return cls(np.stack([np.bincount(bins.numpy(), row.numpy(), minlength=BINS) for row in rows]))

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(self.bins + other.bins)

    @property
    def error(self) -> float:
        """Expected calibration error, as a share: mean over queries of |confidence - accuracy| of their bin."""
        queries, confidence, correct = self.bins
        return float(np.abs(confidence - correct).sum() / queries.sum())


@dataclass(frozen=True)
class Calibration:
    """Reliability over all queries of a domain, as it is and, where a temperature was fitted, with it."""

    before: Reliability
    after: Reliability | None = None

    def __add__(self, other: Calibration) -> Calibration:
        if self.after is None or other.after is None:
            return Calibration(self.before + other.before)
        return Calibration(self.before + other.before, self.after + other.after)
