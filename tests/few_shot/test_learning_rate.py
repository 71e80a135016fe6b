"""Choosing a learning rate: the best on labelled tasks, or on images that are left out of a support set."""

from dataclasses import replace

import pytest
import torch

from smat_peft.episodes import Episode
from smat_peft.errors import NotFiniteError
from smat_peft.few_shot import Adaptation, learning_rate
from smat_peft.few_shot.learning_rate import (
    RATES,
    choose_learning_rate,
    default_learning_rate,
    left_out_episodes,
    search_learning_rate,
)
from tests.tuner.backbones import task_images


@pytest.fixture
def scores(monkeypatch):
    """Says how many of ten queries each rate classifies rightly, in place of fine-tuning; notes what was tried."""
    right, tried = {}, []

    def classify(model, support, labels, queries, *, experts, adaptation, batch_size):
        tried.append((experts, adaptation))
        logits = torch.zeros(len(queries), int(labels.max()) + 1)
        logits[:, 0] = (torch.arange(len(queries)) < right.get(adaptation.learning_rate, 0)) * 2.0 - 1
        return logits, None

    monkeypatch.setattr(learning_rate, "classify_episode", classify)
    return right, tried


def ten_queries():
    support, labels = task_images(0)
    return Episode(support, labels, torch.zeros(10, 3, 16, 16), torch.zeros(10, dtype=torch.long))


@pytest.mark.parametrize(("kind", "factor"), [("full", 1), ("lora", 10)])
def test_the_rate_of_the_best_accuracy_is_chosen(smat_vit, scores, kind, factor):
    scores[0].update({rate * factor: count for rate, count in zip(RATES, (3, 5, 9, 7, 1), strict=True)})
    assert search_learning_rate(smat_vit, [ten_queries()], Adaptation(kind)) == RATES[2] * factor
    assert [adaptation.learning_rate for _, adaptation in scores[1]] == [rate * factor for rate in RATES]


def test_among_equals_the_smallest_rate_is_chosen(smat_vit, scores):
    scores[0].update({RATES[1]: 8, RATES[3]: 8})
    assert search_learning_rate(smat_vit, [ten_queries()], Adaptation("full")) == RATES[1]
    scores[0].update(dict.fromkeys(RATES, 10))
    assert search_learning_rate(smat_vit, [ten_queries()], Adaptation("full")) == 0


def test_experts_are_merged_once_for_each_task(smat_vit, scores):
    search_learning_rate(smat_vit, [ten_queries(), ten_queries()], Adaptation("full"))
    assert len({id(experts) for experts, _ in scores[1]}) == 2


def test_the_cost_is_told_before_anything_is_tried(smat_vit, scores, monkeypatch):
    monkeypatch.setattr(learning_rate, "seconds_of_a_step", lambda *_: 0.5)
    told = []

    def tell(seconds):
        assert not scores[1]
        told.append(seconds)

    search_learning_rate(smat_vit, [ten_queries()] * 3, Adaptation("lora", steps=20), tell=tell)
    assert told == [0.5 * 20 * (len(RATES) - 1) * 3]


def test_each_image_of_a_class_is_left_out_in_turn():
    labels = torch.tensor([0, 1, 0, 1, 2, 0, 3, 3])
    support = torch.arange(8.0).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    episodes = left_out_episodes(support, labels)
    assert [episode.query[:, 0, 0, 0].tolist() for episode in episodes] == [[0, 1, 6], [2, 3, 7]]
    for episode in episodes:
        assert torch.equal(episode.support_labels, labels[episode.support[:, 0, 0, 0].long()])
        assert torch.equal(episode.query_labels, labels[episode.query[:, 0, 0, 0].long()])
        assert sorted(episode.support[:, 0, 0, 0].tolist() + episode.query[:, 0, 0, 0].tolist()) == list(range(8))


def test_a_large_support_is_left_out_in_five_parts():
    assert len(left_out_episodes(torch.zeros(40, 3, 2, 2), torch.arange(40) % 2)) == 5


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0, 1, 2]])
def test_where_fewer_than_two_classes_can_be_scored_the_rate_is_the_default(smat_vit, labels):
    labels = torch.tensor(labels)
    support = torch.zeros(len(labels), 3, 16, 16)

    def tell(seconds):
        raise AssertionError(seconds)

    for kind in ("full", "lora"):
        chosen = choose_learning_rate(smat_vit, support, labels, Adaptation(kind), tell=tell)
        assert chosen == default_learning_rate(kind) > 0


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_support_that_prototypes_classify_well_is_not_fine_tuned_for_nothing(smat_vit, kind):
    support, labels = task_images(0, classes=3, shots=3)
    told = []
    adaptation = Adaptation(kind, steps=2)
    assert choose_learning_rate(smat_vit, support, labels, adaptation, tell=told.append) == 0
    assert 0 < told[0] < 100


def test_a_rate_that_diverges_is_not_chosen_and_images_that_are_not_finite_are_an_error(smat_vit):
    support, labels = task_images(0, classes=3, shots=3)
    episodes = [Episode(support, labels, support[labels == 0], torch.zeros(3, dtype=torch.long))]
    assert search_learning_rate(smat_vit, episodes, Adaptation("full", steps=9), rates=(1e-6, 1e30)) == 1e-6
    lost = [replace(episodes[0], support=support * float("nan"))]
    with pytest.raises(NotFiniteError):
        search_learning_rate(smat_vit, lost, Adaptation("full", steps=1), experts="none")
