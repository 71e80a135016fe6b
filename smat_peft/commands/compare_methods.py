"""Which way of classifying suits a set of examples: all of them on the same repeated stratified splits."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import RepeatedStratifiedKFold
from torch import Tensor, nn
from tqdm.auto import tqdm

from smat_peft.commands.class_folders import FolderImages
from smat_peft.commands.comparison import Comparison
from smat_peft.commands.support_set import SupportSet, read_support_set, repeated_adaptation, tell_cost
from smat_peft.errors import DataError
from smat_peft.experts.prototypes import class_means, cosine_logits
from smat_peft.few_shot.adaptation import PROTOTYPE, classify_episode
from smat_peft.few_shot.backbone import frozen_features, plain_copy
from smat_peft.few_shot.classifier import FewShotClassifier
from smat_peft.few_shot.fine_tuning import Adaptation
from smat_peft.few_shot.loading import ModelSource
from smat_peft.few_shot.regression import frozen_regression
from smat_peft.tuner.adapters import has_experts

MOST_FOLDS = 5
REPEATS = 2

Method = Callable[[NDArray[np.intp], NDArray[np.intp]], Tensor]
"""From the numbers of the images to learn from and of those to classify to the classes of the latter."""


def check_comparable(examples: FolderImages) -> None:
    """Raise a DataError where there are too few examples to split."""
    splits(np.unique(examples.classes, return_inverse=True)[1])


def compare_methods(classifier: FewShotClassifier, examples: FolderImages, source: ModelSource) -> str:
    """Measure the methods on the examples.

    Args:
        classifier: Its model and settings; not fitted.
        examples: The examples.
        source: What the classifier's model was loaded from.

    Returns:
        A table, how LoRA was fine-tuned, and which method to use.
    """
    print(f"comparing methods on {len(examples.paths)} images", file=sys.stderr)  # reading them takes a while
    support = read_support_set(classifier, examples)
    codes = support.codes.numpy()
    parts, lora = splits(codes, classifier.seed), repeated_adaptation(classifier, "lora")
    tell_cost(classifier, support, lora, len(parts))
    bar = tqdm(parts, desc="comparing", unit="split", disable=None)  # is seen while features are computed
    backbone = _untouched_backbone(classifier.model, source)
    methods = methods_for(classifier.model, backbone, support, lora, classifier.batch_size)
    right, tested = np.zeros((len(methods), len(codes))), np.zeros(len(codes))
    for train, test in bar:
        tested[test] += 1
        for row, method in enumerate(methods.values()):
            right[row, test] += method(train, test).numpy() == codes[test]
    comparison = Comparison(list(methods), right[:, tested > 0] / tested[tested > 0])
    how = f"{len(parts)} splits. LoRA: {lora.steps} steps, learning rate {lora.learning_rate:g}."
    return f"{comparison.table()}\n\n{how}\n\n{comparison.conclusion()}"


def _untouched_backbone(model: nn.Module, source: ModelSource) -> nn.Module | None:
    """The backbone without its adapter, if there is one; loaded anew where that was merged into it."""
    if source.adapter is None:
        return None
    return plain_copy(model, {}) if has_experts(model) else source.load_backbone()


def splits(codes: NDArray[np.intp], seed: int = 0) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Numbers of the images to learn from and to classify, split by split, each class spread evenly.

    An image that is the only one of its class is always learned from.

    Raises:
        DataError: Fewer than two classes have two images.
    """
    counts = np.bincount(codes)
    several = np.flatnonzero(counts[codes] > 1)
    if (counts > 1).sum() < 2:
        raise DataError("a comparison takes at least two classes with two images each; add images, or classes")
    alone = np.flatnonzero(counts[codes] == 1)
    folds = RepeatedStratifiedKFold(n_splits=min(MOST_FOLDS, counts.max()), n_repeats=REPEATS, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # it is then missing in some folds' queries
        parts = list(folds.split(several, codes[several]))
    return [(np.concatenate([several[train], alone]), several[test]) for train, test in parts]


def methods_for(
    model: nn.Module, backbone: nn.Module | None, support: SupportSet, lora: Adaptation, batch_size: int
) -> dict[str, Method]:
    """The methods to compare, the simplest first.

    Args:
        model: The backbone, or one with an adapter.
        backbone: In that case the untouched one.
        support: All examples.
        lora: How LoRA is fine-tuned, on the adapter where there is one.
        batch_size: Images that go through the backbone at a time.
    """
    pixels, codes = support.pixels, support.codes
    features = frozen_features(model if backbone is None else backbone, pixels, batch_size=batch_size).cpu()

    def prototypes(train: NDArray[np.intp], test: NDArray[np.intp]) -> Tensor:
        return cosine_logits(features[test], class_means(features[train], codes[train])).argmax(-1)

    def logistic_regression(train: NDArray[np.intp], test: NDArray[np.intp]) -> Tensor:
        regression = frozen_regression().fit(features[train].numpy(), codes[train].numpy())
        return torch.from_numpy(regression.predict(features[test].numpy()))

    def episodes_with(adaptation: Adaptation) -> Method:
        def classify(train: NDArray[np.intp], test: NDArray[np.intp]) -> Tensor:
            logits, _ = classify_episode(
                model, pixels[train], codes[train], pixels[test], adaptation=adaptation, batch_size=batch_size
            )
            return logits.argmax(-1).cpu()

        return classify

    methods: dict[str, Method] = {"prototypes": prototypes, "logistic regression": logistic_regression}
    if backbone is None:
        return methods | {"LoRA": episodes_with(lora)}
    return methods | {"adapter": episodes_with(PROTOTYPE), "adapter + LoRA": episodes_with(lora)}
