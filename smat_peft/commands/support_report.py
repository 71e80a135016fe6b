"""What a set of examples says of itself when each image is left out in turn, and what to do about it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from smat_peft.commands.answers import Answers
from smat_peft.commands.class_folders import FolderImages
from smat_peft.commands.support_set import read_support_set, repeated_adaptation, tell_cost
from smat_peft.errors import DataError
from smat_peft.evaluation.tables import render_table
from smat_peft.few_shot.classifier import FewShotClassifier
from smat_peft.few_shot.leave_one_out import images_to_leave_out, leave_one_out

MOST_ROWS = 10  # of a table
CLEARLY = 2.0  # times as probable as the folder's own class


def leave_examples_out(classifier: FewShotClassifier, examples: FolderImages) -> Answers:
    """What is said of each example when it is left out; of those whose class has another one.

    Raises:
        DataError: There is no such example.
    """
    support = read_support_set(classifier, examples)
    numbers = images_to_leave_out(support.codes)
    if not numbers:
        raise DataError(f"{examples.folder} holds one image of each class, which cannot be left out; add second ones")
    adaptation = repeated_adaptation(classifier, classifier.adaptation)
    tell_cost(classifier, support, adaptation, len(numbers))
    logits = leave_one_out(
        classifier.model, support.pixels, support.codes, adaptation=adaptation, batch_size=classifier.batch_size
    )
    bar = tqdm(logits, total=len(numbers), desc="leaving one out", unit="image", disable=None)
    return Answers(
        images=[examples.names[number] for number in numbers],
        paths=[examples.paths[number] for number in numbers],
        true_classes=[examples.classes[number] for number in numbers],
        classes=support.classes,
        probabilities=torch.stack(list(bar)).double().softmax(-1).cpu().numpy(),
    )


def support_report(answers: Answers, examples: FolderImages) -> str:
    """Accuracy with its interval, what is confused with what, which images may lie in a wrong folder."""
    lonely = sorted(set(examples.classes) - set(answers.true_classes))
    largest = max(Counter(answers.true_classes).values()) / len(answers.true_classes)
    parts = [
        answers.accuracy("leave-one-out accuracy") + f"; guessing: {100 / len(answers.classes):.1f} %"
        f"; always the largest class: {100 * largest:.1f} %",
        _confusions(answers),
        _suspects(answers),
    ]
    if lonely:
        parts.append(f"Not checked, with a single image each: {', '.join(lonely)}. Add a second image.")
    return "\n\n".join(part for part in parts if part)


def mislabelled(probabilities: NDArray[np.float64], given: NDArray[np.intp]) -> list[int]:
    """Images that look as if they lay in a wrong folder, the clearest first.

    Such an image is taken for another class at least as surely as that class's own images are on average (confident
    learning, Northcutt et al. 2021, eq. 2), and twice as surely as for its own: not every mistake is one of the folder.

    Args:
        probabilities: `[N, C]`, of images that were left out.
        given: The numbers of their folders' classes, `[N]`.
    """
    rows = np.arange(len(given))
    own = probabilities[rows, given]
    best = probabilities.argmax(1)
    sure = {label: own[given == label].mean() for label in np.unique(given)}
    least = np.maximum([sure.get(label, 1.0) for label in best], CLEARLY * own)
    suspects = rows[(best != given) & (probabilities[rows, best] >= least)]
    return sorted(map(int, suspects), key=lambda row: own[row] - probabilities[row, best[row]])


def _confusions(answers: Answers) -> str:
    pairs = Counter(
        (name, label) for name, label in zip(answers.true_classes, answers.labels, strict=True) if name != label
    )
    if not pairs:
        return "No image was taken for another class."
    rows = [[name, label, str(count)] for (name, label), count in pairs.most_common(MOST_ROWS)]
    table = render_table(["class", "taken for", "images"], rows, "<<>", "text")
    return f"{table}\n{_more(len(pairs), 'pairs')}What would help most: further images of these classes."


def _suspects(answers: Answers) -> str:
    number = {name: place for place, name in enumerate(answers.classes)}
    given = np.array([number[name] for name in answers.true_classes])
    suspects = mislabelled(answers.probabilities, given)
    if not suspects:
        return "No image looks as if it lay in a wrong folder."
    rows = []
    for row in suspects[:MOST_ROWS]:
        best, own = answers.ranked[row, 0], given[row]
        rows.append(
            [
                answers.images[row],
                answers.classes[best],
                f"{answers.probabilities[row, best]:.3f}",
                f"{answers.probabilities[row, own]:.3f}",
            ]
        )
    table = render_table(["look at", "looks like", "probability", "of its folder"], rows, "<<>>", "text")
    return f"{table}\n{_more(len(suspects), 'images')}These may lie in a wrong folder, or show something unusual."


def _more(count: int, what: str) -> str:
    return f"... and {count - MOST_ROWS} more {what}\n" if count > MOST_ROWS else ""
