"""What is chosen before a test, and on which tasks: learning rates of fine-tuning, and temperatures."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from smat_peft.episodes.episode import Episode
from smat_peft.errors import DataError
from smat_peft.evaluation.calibration import fit_temperature
from smat_peft.evaluation.measuring import Source
from smat_peft.evaluation.predictors import ModelPredictor, Predictor, predict
from smat_peft.evaluation.processes import spread
from smat_peft.few_shot.fine_tuning import Adaptation
from smat_peft.few_shot.learning_rate import RATES, search_learning_rate

RateSelection = Literal["given", "auto", "validation", "test_tasks"]
"""How the learning rate of fine-tuning is chosen: it is given; on images left out of each support; on validation
episodes; or, as in the published protocol, with the query labels of the first test tasks of each domain."""

SEARCHED_TEST_TASKS = 5  # of each domain; this and the next two are METHOD 11's
SEARCHED_SHOTS = 100  # most support images of a class
PUBLISHED_RATES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Fitted:
    """What was found on validation episodes.

    Attributes:
        learning_rates: By predictor, where one was chosen.
        temperatures: By predictor, where one was fitted.
    """

    learning_rates: dict[str, float] = field(default_factory=dict)
    temperatures: dict[str, float] = field(default_factory=dict)


def mean_accuracy(predictor: Predictor, episodes: Iterable[Episode]) -> float:
    """Mean over episodes of the share of queries classified rightly: what methods and rates are chosen by.

    Raises:
        DataError: There are no episodes.
    """
    shares = [
        (predict("the model", predictor, episode).logits.argmax(-1) == episode.query_labels.cpu())
        .double()
        .mean()
        .item()
        for episode in episodes
    ]
    if not shares:
        raise DataError("there are no episodes to average accuracies over")
    return statistics.fmean(shares)


def adapted(
    predictors: Mapping[str, Predictor], adaptation: Adaptation, rate_selection: RateSelection
) -> dict[str, Predictor]:
    """The predictors, those of models with this adaptation."""
    chooses_rate = rate_selection == "auto" and adaptation.kind != "prototype"
    return {
        name: replace(each, adaptation=adaptation, chooses_rate=chooses_rate)
        if isinstance(each, ModelPredictor)
        else each
        for name, each in predictors.items()
    }


def fit(
    predictors: Mapping[str, Predictor],
    validation: Sequence[Episode],
    rate_selection: RateSelection,
    accelerator: Accelerator | None,
) -> Fitted:
    """Choose a learning rate for each predictor where that is asked for, then fit its temperature with that rate."""
    if not len(validation) or rate_selection == "test_tasks":
        return Fitted()
    rates = search_rates(predictors, validation, RATES) if rate_selection == "validation" else {}
    predictors = with_rates(predictors, rates)

    def answers(number: int) -> tuple[Tensor, list[Tensor]]:
        episode = validation[number]
        return episode.query_labels.cpu(), [predict(name, each, episode).logits for name, each in predictors.items()]

    found = spread(answers, range(len(validation)), accelerator)
    labels = [of_episode for of_episode, _ in found]
    temperatures = {
        name: fit_temperature([logits[place] for _, logits in found], labels) for place, name in enumerate(predictors)
    }
    return Fitted(rates, temperatures)


def fit_on_test_tasks(predictors: Mapping[str, Predictor], source: Source) -> dict[str, Predictor]:
    """The predictors with the rates that are best on the queries of a domain's first test tasks."""
    tasks = [_with_few_shots(source.episodes[number]) for number in source.numbers[:SEARCHED_TEST_TASKS]]
    return with_rates(predictors, search_rates(predictors, tasks, PUBLISHED_RATES))


def search_rates(
    predictors: Mapping[str, Predictor], episodes: Sequence[Episode], rates: Sequence[float]
) -> dict[str, float]:
    """The best rate on the queries of some episodes, of each predictor that fine-tunes."""
    return {
        name: search_learning_rate(
            each.model, episodes, each.adaptation, experts=each.experts, batch_size=each.batch_size, rates=rates
        )
        for name, each in predictors.items()
        if isinstance(each, ModelPredictor) and each.adaptation.kind != "prototype"
    }


def with_rates(predictors: Mapping[str, Predictor], rates: Mapping[str, float]) -> dict[str, Predictor]:
    """The predictors, with the learning rates that were chosen for them."""
    return {
        name: replace(each, adaptation=replace(each.adaptation, learning_rate=rates[name]))
        if isinstance(each, ModelPredictor) and name in rates
        else each
        for name, each in predictors.items()
    }


def _with_few_shots(episode: Episode) -> Episode:
    of_class = [torch.nonzero(episode.support_labels == label).flatten() for label in range(episode.ways)]
    kept = torch.cat([images[:SEARCHED_SHOTS] for images in of_class])
    return replace(episode, support=episode.support[kept], support_labels=episode.support_labels[kept])
