"""Entropy and spread of expert weights, and what other mixes of them predict."""

import json

import numpy as np
import pytest
import torch

from smat_peft.episodes.fixed import FixedEpisodes
from smat_peft.errors import ConfigurationError, DataError
from smat_peft.evaluation.predictors import other_domain_predictor, prototype_predictor
from smat_peft.evaluation.records import Record
from smat_peft.evaluation.routing import Routing
from smat_peft.few_shot.mixing import route_support


def records(weights, predictor="SMAT"):
    return [
        Record(predictor, domain, "id", index, 5, 5, 25, 0.5, expert_weights=tuple(each))
        for domain, of_domain in weights.items()
        for index, each in enumerate(of_domain)
    ]


def test_entropy_is_1_for_an_even_mix_and_0_for_one_expert():
    routing = Routing.of(records({"even": [[0.25] * 4] * 3, "one": [[1, 0, 0, 0]] * 2, "half": [[0.5, 0.5, 0, 0]]}))
    assert routing.entropy("even") == pytest.approx(1)
    assert routing.entropy("one") == pytest.approx(0)
    assert routing.entropy("half") == pytest.approx(0.5)


def test_spread_within_and_between_domains_are_told_apart():
    varied = Routing.of(records({"a": [[1, 0], [0, 1]], "b": [[0, 1], [1, 0]]}))
    assert (varied.spread_within("a"), varied.spread_between()) == pytest.approx((np.sqrt(0.5), 0))
    by_domain = Routing.of(records({"a": [[1, 0], [1, 0]], "b": [[0, 1], [0, 1]]}))
    assert (by_domain.spread_within("a"), by_domain.spread_between()) == pytest.approx((0, np.sqrt(0.5)))


def test_the_table_and_the_data_name_every_domain_and_expert():
    routing = Routing.of([*records({"a": [[0.25, 0.75]]}), *records({"b": [[1, 0]]}, "other")])
    assert "a         0.811   0.000     0.250     0.750" in routing.table()
    assert json.loads(json.dumps(routing.as_dict()))["domains"].keys() == {"a"}


def test_records_without_expert_weights_are_an_error():
    with pytest.raises(DataError, match="no expert weights in the records of 'backbone'"):
        Routing.of(records({"a": [[1.0]]}), "backbone")


@pytest.fixture
def validation(make_domain, transform):
    domains = [make_domain("a"), make_domain("b", seed=1)]
    return FixedEpisodes(domains, "all", 2, transform=transform, ways=5, shots=1)


def test_experts_of_another_domain_are_those_routed_from_its_support(validation, smat_vit):
    predict = other_domain_predictor(smat_vit, validation)
    of_a, of_b = ([each for each in validation if each.domain == name] for name in "ab")
    for episode, others in ((of_a[0], of_b), (of_b[1], of_a)):
        other = others[episode.index % 2]
        expected = route_support(smat_vit, other.support, other.support_labels).weights
        prediction = predict(episode)
        torch.testing.assert_close(prediction.expert_weights, expected)
        torch.testing.assert_close(prediction.logits, prototype_predictor(smat_vit, expected)(episode).logits)
        assert (prediction.expert_weights - prototype_predictor(smat_vit)(episode).expert_weights).abs().max() > 1e-5


def test_experts_of_another_domain_need_two_domains_and_experts(validation, smat_vit, make_vit):
    with pytest.raises(DataError, match="at least two domains"):
        other_domain_predictor(smat_vit, [each for each in validation if each.domain == "a"])
    with pytest.raises(ConfigurationError, match="no experts"):
        other_domain_predictor(make_vit(), validation)
