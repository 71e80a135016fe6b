"""How good is FewShotClassifier on handwritten digits, and is logistic regression on the same features any worse?

Why: prototypes take no training; a fair question is what they lose to a classifier that is trained. Both see the same
features of the same 200 tasks, drawn from the scans that scikit-learn ships. A minute on two CPU cores, no network:

    python examples/digits.py
    python examples/digits.py --model_name_or_path facebook/dinov2-small --tasks 20

It prints mean accuracies with their 95 % intervals over tasks, and the paired difference.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from tqdm.auto import tqdm

from smat_peft import FewShotClassifier, load_domain
from smat_peft.commands.console import HelpFormatter
from smat_peft.evaluation.statistics import Estimate, estimate_difference, estimate_mean
from smat_peft.few_shot.backbone import frozen_features
from smat_peft.few_shot.regression import frozen_regression

QUERIES = 15  # images of each class that are classified


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model_name_or_path", default="demo-vit", help="a vision model of the Hub, or a folder")
    parser.add_argument("--adapter", help="an adapter for it; the regression's features are those without it")
    parser.add_argument("--tasks", type=int, default=200, help="tasks to draw")
    parser.add_argument("--ways", type=int, default=5, help="digits in a task")
    parser.add_argument("--shots", type=int, default=5, help="labelled images of each digit")
    parser.add_argument("--seed", type=int, default=0, help="seed of the tasks")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    classifier = FewShotClassifier.from_pretrained(arguments.model_name_or_path, arguments.adapter)
    digits = load_domain("builtin:digits")
    names = digits.classes("all")
    pixels = torch.stack(
        [classifier.image_processor.evaluation(image) for name in names for image in digits.images("all", name)]
    )
    of_digit = np.arange(len(pixels)).reshape(len(names), -1)  # as many of each
    features = frozen_features(classifier.model, pixels).cpu().numpy()

    random = np.random.default_rng(arguments.seed)
    ours, theirs = [], []
    for _ in tqdm(range(arguments.tasks), desc="tasks", disable=None):
        chosen = random.choice(len(names), arguments.ways, replace=False)
        drawn = np.stack([random.choice(of_digit[digit], arguments.shots + QUERIES, replace=False) for digit in chosen])
        support, query = drawn[:, : arguments.shots].flatten(), drawn[:, arguments.shots :].flatten()
        known, wanted = chosen.repeat(arguments.shots), chosen.repeat(QUERIES)
        ours.append(100 * classifier.fit(pixels[support], known).score(pixels[query], wanted))
        theirs.append(100 * frozen_regression().fit(features[support], known).score(features[query], wanted))

    print(f"{arguments.ways}-way {arguments.shots}-shot, {arguments.tasks} tasks, accuracy in %")
    print(f"FewShotClassifier    {figure(estimate_mean(ours))}")
    print(f"logistic regression  {figure(estimate_mean(theirs))}")
    print(f"difference           {figure(estimate_difference(ours, theirs), '+')}")


def figure(estimate: Estimate, sign: str = "") -> str:
    return f"{estimate.mean:{sign}.1f} ± {estimate.half_width:.1f}"


if __name__ == "__main__":
    main()
