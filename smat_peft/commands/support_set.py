"""The examples as a support set, and what it costs to fine-tune on it many times."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from smat_peft.commands.class_folders import FolderImages
from smat_peft.episodes.episode import Episode
from smat_peft.few_shot.classifier import FewShotClassifier
from smat_peft.few_shot.fine_tuning import Adaptation
from smat_peft.few_shot.inputs import encode_labels, pixel_batches
from smat_peft.few_shot.learning_rate import default_learning_rate, seconds_of_a_step


@dataclass(frozen=True)
class SupportSet:
    """Pixels `[N, 3, H, W]`, class numbers `[N]`, and the names of the classes `C`."""

    pixels: Tensor
    codes: Tensor
    classes: list[str]


def read_support_set(classifier: FewShotClassifier, examples: FolderImages) -> SupportSet:
    """The examples as the classifier's model takes them."""
    classes, codes = encode_labels(examples.classes)
    pixels = torch.cat(list(pixel_batches(examples.paths, classifier.image_processor, classifier.batch_size)))
    return SupportSet(pixels, codes, classes.tolist())


def repeated_adaptation(classifier: FewShotClassifier, kind: str) -> Adaptation:
    """How to fine-tune where it is done again and again: a learning rate is not chosen anew each time."""
    rate = classifier.learning_rate
    rate = default_learning_rate(kind) if isinstance(rate, str) else rate
    return Adaptation(kind, classifier.steps, rate, classifier.augment, seed=classifier.seed)


def tell_cost(classifier: FewShotClassifier, support: SupportSet, adaptation: Adaptation, times: int) -> None:
    """Say on stderr how long fine-tuning so many times will take, before it begins."""
    if not adaptation.takes_steps:
        return
    episode = Episode(support.pixels, support.codes, support.pixels[:0], support.codes[:0])
    seconds = seconds_of_a_step(classifier.model, episode, adaptation, classifier.batch_size)
    total = seconds * adaptation.steps * times
    print(f"fine-tuning {times} times, {adaptation.steps} steps each, takes about {total:.0f} s", file=sys.stderr)
