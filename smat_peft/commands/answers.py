"""What a classifier said of images: a table, an accuracy, a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smat_peft.evaluation.statistics import proportion_interval
from smat_peft.evaluation.tables import render_table
from smat_peft.few_shot.classifier import NONE_OF_THESE
from smat_peft.files import replacing


@dataclass(frozen=True)
class Answers:
    """Probabilities of classes for images.

    Attributes:
        images: What to call each image, `N`.
        paths: Their files, `N`.
        true_classes: Their classes, `N`; empty where they are not known.
        classes: All classes, `C`.
        probabilities: `[N, C]`.
        reject_below: Below this probability the answer is "none of these".
    """

    images: Sequence[str]
    paths: Sequence[Path]
    true_classes: Sequence[str]
    classes: Sequence[str]
    probabilities: NDArray[np.float64]
    reject_below: float = 0.0

    @cached_property
    def ranked(self) -> NDArray[np.intp]:
        """The numbers of the classes from the most probable to the least, `[N, C]`."""
        return np.argsort(-self.probabilities, axis=1, kind="stable")

    @cached_property
    def confidence(self) -> NDArray[np.float64]:
        """The probability of the most probable class, `[N]`."""
        confidence: NDArray[np.float64] = self.probabilities.max(axis=1)
        return confidence

    @cached_property
    def labels(self) -> list[str]:
        """The answers, `N`."""
        best = [self.classes[place] for place in self.ranked[:, 0]]
        rejected = self.confidence < self.reject_below
        return [NONE_OF_THESE if reject else name for name, reject in zip(best, rejected, strict=True)]

    @cached_property
    def runners_up(self) -> list[int]:
        """What comes next, by the numbers of the classes, `N`: after a rejection, the class that was most probable."""
        rejected = self.confidence < self.reject_below
        return np.where(rejected, self.ranked[:, 0], self.ranked[:, 1]).tolist()

    def table(self) -> str:
        """A row an image: its answer, the runner-up, and their probabilities, if that is a class."""
        header = ["image", "class"] if self.true_classes else ["image"]
        rows = []
        for number, (label, second) in enumerate(zip(self.labels, self.runners_up, strict=True)):
            row = [self.images[number], *self.true_classes[number : number + 1], label]
            row += ["" if label == NONE_OF_THESE else f"{self.confidence[number]:.3f}"]
            row += [self.classes[second], f"{self.probabilities[number, second]:.3f}"]
            rows.append(row)
        header += ["label", "probability", "runner-up", "probability"]
        return render_table(header, rows, "<" * (len(header) - 4) + "<><>", "text")

    def accuracy(self, title: str = "accuracy") -> str:
        """The share of right answers with its interval, where the true classes are known."""
        correct = sum(label == name for label, name in zip(self.labels, self.true_classes, strict=True))
        low, high = proportion_interval(correct, len(self.labels))
        share = 100 * correct / len(self.labels)
        interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"
        return f"{title} {share:.1f} % ({correct} of {len(self.labels)} images; {interval})"

    def write_csv(self, path: Path) -> None:
        """A row an image: its answer and the probabilities of all classes.

        Raises:
            CheckpointError: The file cannot be written.
        """
        with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            known = ["class"] if self.true_classes else []
            writer.writerow(["image", *known, "label", *(f"probability of {name}" for name in self.classes)])
            for number, image in enumerate(self.images):
                figures = (f"{probability:.6f}" for probability in self.probabilities[number])
                writer.writerow([image, *self.true_classes[number : number + 1], self.labels[number], *figures])
