"""Methods measured on the same images: a table, and one sentence that says which to use and how large noise is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smat_peft.evaluation.statistics import NORMAL_QUANTILE, proportion_interval
from smat_peft.evaluation.tables import render_table


@dataclass(frozen=True)
class Comparison:
    """How often each method was right about each image.

    Attributes:
        methods: Their names, the simplest first, `K`.
        correct: Share of the repeats in which a method classified an image rightly, `[K, N]`.
    """

    methods: Sequence[str]
    correct: NDArray[np.float64]

    def table(self) -> str:
        """Accuracy of each method with its interval, and its difference to the first."""
        count = self.correct.shape[1]
        rows = []
        for name, correct in zip(self.methods, self.correct, strict=True):
            low, high = proportion_interval(float(correct.sum()), count)
            difference, noise = paired_difference(correct, self.correct[0])
            versus = "" if name == self.methods[0] else f"{100 * difference:+.1f} ± {100 * noise:.1f}"
            rows.append([name, f"{100 * correct.mean():.1f}", f"{100 * low:.1f} to {100 * high:.1f}", versus])
        header = ["method", "accuracy %", "95 % interval", f"difference to {self.methods[0]}"]
        return render_table(header, rows, "<>>>", "text")

    def conclusion(self) -> str:
        """One sentence: the simplest method that nothing beats by more than noise, and how large noise is."""
        accuracy, count = 100 * self.correct.mean(1), self.correct.shape[1]
        best = int(accuracy.argmax())

        def noise(one: int, other: int) -> float:
            return 100 * paired_difference(self.correct[one], self.correct[other])[1]

        def is_noise(points: float) -> str:
            return f"with {count} images a difference below {points:.1f} points is noise"

        use = next(k for k in range(best + 1) if accuracy[best] - accuracy[k] <= (noise(best, k) if k != best else 0))
        name = self.methods[use]
        if use != best:
            gain = accuracy[best] - accuracy[use]
            return f"Use {name}: {self.methods[best]} is {gain:.1f} points better, but {is_noise(noise(best, use))}."
        if use == 0:
            return f"Use {name}: nothing is better, and {is_noise(max(noise(k, 0) for k in range(1, len(accuracy))))}."
        simpler = int(accuracy[:use].argmax())
        gain = accuracy[use] - accuracy[simpler]
        return f"Use {name}: it is {gain:.1f} points better than what is simpler, and {is_noise(noise(use, simpler))}."


def paired_difference(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[float, float]:
    """Mean difference over images `[N]`, and half its 95 % interval.

    The interval of Agresti and Min (2005) for matched pairs: it does not shrink to nothing where few images are judged
    differently, as mean ± 1.96 std / sqrt(n) does.
    """
    difference, count = ours - theirs, len(ours) + 2
    variance = (difference**2).sum() + 1 - difference.sum() ** 2 / count
    return float(difference.mean()), NORMAL_QUANTILE * math.sqrt(variance) / count
