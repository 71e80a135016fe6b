import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smat_peft.episodes.domain import Domain
from smat_peft.episodes.hierarchies import Bilevel, Ontology
from smat_peft.episodes.images import ImageTransform
from smat_peft.episodes.sampling import EpisodeSampler

AUTHORS = json.loads((Path(__file__).parents[1] / "golden/authors/sampler.json").read_text())["bilevel"]
FIVES = [[*range(5)], [*range(5, 10)], [*range(10, 20)]]


def consecutive(sizes: list[int]) -> list[range]:
    return list(itertools.starmap(range, itertools.pairwise(itertools.accumulate(sizes, initial=0))))


def make_domain(**hierarchies: Any) -> Domain:
    names = [f"{number}" for number in range(60)]
    splits = {"train": names[:20], "validation": names[20:40], "test": names[40:]}
    images = [Image.new("RGB", (2, 2))] * 20
    return Domain("letters", dict.fromkeys(names, images), splits, hierarchies=hierarchies)


@pytest.mark.parametrize("expected", AUTHORS, ids=lambda draw: f"{draw['seed']}")
def test_bilevel_draws_are_the_authors_draws(expected: dict[str, Any]) -> None:
    groups = consecutive(expected["superclass_sizes"])
    classes = Bilevel(groups).draw(np.random.RandomState(expected["seed"]), max_ways=50)
    group = groups[expected["superclass"]]
    assert classes.tolist() == [group.start + number for number in expected["subclass_ids"]]
    assert len(classes) == expected["way"]


def test_an_episode_of_a_bilevel_hierarchy_stays_within_one_group() -> None:
    sampler = EpisodeSampler([make_domain(train=Bilevel(FIVES))], "train", transform=ImageTransform((2, 2)))
    drawn = [set(map(int, sampler.describe(index).classes)) for index in range(60)]
    homes = [[number for number, group in enumerate(FIVES) if classes <= set(group)] for classes in drawn]
    assert all(len(home) == 1 for home in homes)
    assert {home for (home,) in homes} == {0, 1, 2}
    assert {len(classes) for classes in drawn} == {5, 6, 7, 8, 9, 10}
    assert {len(Bilevel(FIVES).draw(np.random.RandomState(seed), max_ways=6)) for seed in range(40)} == {5, 6}


def test_an_episode_of_an_ontology_has_every_class_under_one_node_as_long_as_they_are_not_too_many() -> None:
    spans = [[3, 1, 4, 15, 9], [*range(12)]]
    domain = make_domain(train=Ontology(spans))
    whole = EpisodeSampler([domain], "train", transform=ImageTransform((2, 2)), max_ways=12)
    drawn = {tuple(map(int, whole.describe(index).classes)) for index in range(20)}
    assert drawn == set(map(tuple, spans))
    limited = EpisodeSampler([domain], "train", transform=ImageTransform((2, 2)), max_ways=7)
    drawn = {tuple(map(int, limited.describe(index).classes)) for index in range(60)}
    assert tuple(spans[0]) in drawn
    others = drawn - {tuple(spans[0])}
    assert len(others) > 10
    assert all(len(set(classes)) == 7 and set(classes) <= set(spans[1]) for classes in others)


def test_a_node_is_drawn_by_one_number_and_its_classes_by_none() -> None:
    random, plain = np.random.RandomState(7), np.random.RandomState(7)
    assert Ontology(FIVES).draw(random, max_ways=50).tolist() == FIVES[plain.randint(3)]
    assert random.randint(1000) == plain.randint(1000)


def test_fixed_ways_and_splits_without_a_hierarchy_draw_from_all_classes() -> None:
    related, unrelated = make_domain(train=Bilevel(FIVES)), make_domain()
    for split, ways in (("train", 5), ("test", None), ("all", None)):
        one, other = (
            EpisodeSampler([domain], split, ways, transform=ImageTransform((2, 2)))  # type: ignore[arg-type]
            for domain in (related, unrelated)
        )
        assert all(one.describe(index) == other.describe(index) for index in range(10))
