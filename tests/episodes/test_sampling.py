import itertools
import json
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smat_peft.episodes.domain import Domain, Split
from smat_peft.episodes.draws import draw_classes, draw_shots
from smat_peft.episodes.fixed import FixedEpisodes
from smat_peft.episodes.images import ImageTransform
from smat_peft.episodes.sampling import EpisodeSampler, can_serve
from smat_peft.errors import ConfigurationError, DataError
from tests.episodes.loading import forks, loaded, same

AUTHORS = json.loads((Path(__file__).parents[1] / "golden/authors/sampler.json").read_text())["episodes"]
BYTES = ImageTransform(size=(4, 4), rescale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class NumberedImages(Sequence[Image.Image]):
    """Images whose three bytes name them: domain, class, number. Remembers which were asked for."""

    def __init__(self, domain: int, class_number: int, count: int) -> None:
        self.domain, self.class_number, self.count = domain, class_number, count
        self.asked_for: set[int] = set()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: Any) -> Image.Image:
        self.asked_for.add(number)
        return Image.new("RGB", (4, 4), (self.domain, self.class_number, number))


def make_domain(number: int = 0, classes: int = 40, images: int = 20, **settings: Any) -> Domain:
    return Domain(f"domain{number}", {f"{c}": NumberedImages(number, c, images) for c in range(classes)}, **settings)


def make_sampler(split: Split = "train", **settings: Any) -> EpisodeSampler:
    settings = {"domains": [make_domain(0), make_domain(1), make_domain(2)], "transform": BYTES, **settings}
    return EpisodeSampler(split=split, **settings)


@pytest.mark.parametrize("expected", AUTHORS, ids=lambda episode: f"{episode['name']}-{episode['seed']}")
def test_the_draws_are_the_authors_draws(expected: dict[str, Any]) -> None:
    random = np.random.RandomState(expected["seed"])
    sizes = np.array(expected["images_per_class"])
    classes = draw_classes(random, len(sizes))
    shots, queries = draw_shots(random, sizes[classes])
    assert classes.tolist() == expected["class_ids"]
    assert shots.tolist() == expected["num_support"]
    assert queries == expected["num_query"]


@given(
    sizes=st.lists(st.integers(2, 2000), min_size=5, max_size=50),
    queries=st.integers(1, 30),
    max_support=st.integers(50, 600),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_class_gets_support_and_query_and_no_more_than_it_has(
    sizes: list[int], queries: int, max_support: int, seed: int
) -> None:
    class_sizes = np.array(sizes)
    shots, query = draw_shots(np.random.RandomState(seed), class_sizes, queries=queries, max_support=max_support)
    assert shots.min() >= 1
    assert 1 <= query <= queries
    assert (shots + query <= class_sizes).all()
    assert shots.sum() <= max_support


@given(sizes=st.lists(st.integers(6, 40), min_size=2, max_size=20), shots=st.integers(1, 5))
def test_fixed_shots_are_the_same_for_all_classes(sizes: list[int], shots: int) -> None:
    support, query = draw_shots(np.random.RandomState(0), np.array(sizes), shots=shots)
    assert support.tolist() == [shots] * len(sizes)
    assert query == min(10, min(sizes) - shots)


def test_fixed_ways_and_shots_make_episodes_of_that_shape() -> None:
    episode = make_sampler(ways=7, shots=3, queries=4)[11]
    assert episode.support_labels.tolist() == [label for label in range(7) for _ in range(3)]
    assert episode.query_labels.tolist() == [label for label in range(7) for _ in range(4)]


def test_an_episode_holds_the_images_that_its_description_names() -> None:
    sampler = make_sampler(augment=False)
    for index in range(20):
        episode, description = sampler[index], sampler.describe(index)
        assert (episode.domain, episode.index) == (description.domain, index)
        for pixels, labels, numbers in (
            (episode.support, episode.support_labels, description.support),
            (episode.query, episode.query_labels, description.query),
        ):
            named = [
                (int(description.domain.removeprefix("domain")), int(description.classes[label]), number, label)
                for label, of_class in enumerate(numbers)
                for number in of_class
            ]
            shown = [(*map(int, image[:, 0, 0]), int(label)) for image, label in zip(pixels, labels, strict=True)]
            assert shown == named


def test_no_image_is_in_support_and_query_and_none_is_there_twice() -> None:
    for index in range(50):
        description = make_sampler().describe(index)
        assert len(set(description.classes)) == len(description.classes)
        for support, query in zip(description.support, description.query, strict=True):
            assert len({*support, *query}) == len(support) + len(query)


def test_an_episode_depends_on_seed_split_and_index_and_on_nothing_else() -> None:
    forwards, backwards = make_sampler(seed=3), make_sampler(seed=3)
    first = [forwards[index] for index in range(6)]
    second = [backwards[index] for index in reversed(range(6))][::-1]
    assert all(map(same, first, second))
    names = [f"{number}" for number in range(20)]
    halves = make_domain(classes=20, splits={"train": names[:10], "validation": names[10:]})
    choices = [
        make_sampler(split, domains=[halves], seed=seed, ways=5, shots=5).describe(index).support
        for split in ("train", "validation")
        for seed in (3, 4)
        for index in (0, 1)
    ]
    assert len(set(choices)) == len(choices)


def test_augmentation_changes_pixels_and_not_the_choice_of_images() -> None:
    assert make_sampler(augment=True).describe(5) == make_sampler(augment=False).describe(5)
    assert not torch.equal(make_sampler(augment=True)[5].support, make_sampler(augment=False)[5].support)


def test_only_training_images_are_augmented_unless_asked_and_as_the_domain_allows() -> None:
    assert [make_sampler(split).augment for split in ("train", "validation", "test", "all")] == [True] + [False] * 3
    unchanging = make_sampler(domains=[make_domain(augment=frozenset())])
    assert same(unchanging[5], make_sampler(domains=[make_domain()], augment=False)[5])


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # more than there are cores
@forks
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_number_of_workers_changes_no_episode(workers: int) -> None:
    sampler = make_sampler(ways=5, shots=2, queries=2)
    episodes = loaded(sampler, range(9), workers)
    assert len(episodes) == 9
    assert all(same(episode, sampler[index]) for index, episode in enumerate(episodes))


def test_a_pickled_sampler_gives_the_same_episodes() -> None:
    sampler = make_sampler()
    assert same(pickle.loads(pickle.dumps(sampler))[7], sampler[7])


def test_images_that_an_episode_does_not_use_are_not_read() -> None:
    domain = make_domain(classes=30, images=50)
    sampler = make_sampler("all", domains=[domain], ways=5, shots=2, queries=3)
    description = sampler.describe(0)
    assert not any(images.asked_for for images in domain.class_images.values())  # type: ignore[attr-defined]
    sampler[0]
    for name, images in domain.class_images.items():
        expected: set[int] = set()
        if name in description.classes:
            label = description.classes.index(name)
            expected = {*description.support[label], *description.query[label]}
        assert images.asked_for == expected  # type: ignore[attr-defined]


def test_splits_share_no_class_and_all_uses_every_class() -> None:
    domain = make_domain(classes=60)
    seen: dict[str, set[str]] = {}
    for split in ("train", "validation", "test", "all"):
        sampler = make_sampler(split, domains=[domain])
        seen[split] = {name for index in range(100) for name in sampler.describe(index).classes}
        assert seen[split] == set(domain.classes(split))
    for one, other in itertools.combinations(("train", "validation", "test"), 2):
        assert not seen[one] & seen[other]


def test_every_domain_is_drawn_equally_often_whatever_its_size() -> None:
    sampler = make_sampler("all", domains=[make_domain(0, classes=5), make_domain(1, classes=50)])
    drawn = Counter(sampler.describe(index).domain for index in range(600))
    assert abs(drawn["domain0"] - 300) < 4 * (600 / 4) ** 0.5


@pytest.mark.parametrize(
    ("weights", "share"), [("size", 0.9), ({"domain0": 3, "domain1": 1}, 0.25), ({"domain1": 9.0, "domain0": 1.0}, 0.9)]
)
def test_domains_are_drawn_by_their_weights(weights: Any, share: float) -> None:
    domains = [make_domain(0, classes=5, images=10), make_domain(1, classes=15, images=30), make_domain(2, classes=4)]
    sampler = make_sampler("all", domains=domains, domain_weights=weights)  # the third has too few classes
    drawn = Counter(sampler.describe(index).domain for index in range(600))
    assert abs(drawn["domain1"] - 600 * share) < 4 * (600 * share * (1 - share)) ** 0.5
    assert drawn["domain0"] + drawn["domain1"] == 600


def test_uniform_weights_leave_the_episodes_as_they_are_without() -> None:
    one, other = make_sampler(), make_sampler(domain_weights="uniform")
    assert [one.describe(index) for index in range(10)] == [other.describe(index) for index in range(10)]


@pytest.mark.parametrize(
    "weights",
    [
        "largest",
        {"domain0": 1, "domain1": 1},
        {"domain0": 1, "domain1": 1, "domain2": 1, "domain3": 1},
        {"domain0": 1, "domain1": 1, "domain2": 0},
        {"domain0": 1, "domain1": 1, "domain2": float("nan")},
        {"domain0": 1, "domain1": 1, "domain2": float("inf")},
    ],
    ids=str,
)
def test_weights_that_do_not_fit_the_domains_are_refused(weights: Any) -> None:
    with pytest.raises(ConfigurationError, match="a number above 0 for each domain, domain0, domain1, domain2; got"):
        make_sampler(domain_weights=weights)


def test_a_domain_with_fewer_than_five_classes_in_the_split_is_left_out() -> None:
    small, large = make_domain(0, classes=6), make_domain(1, classes=40)
    assert [can_serve(small, split) for split in ("train", "validation", "test", "all")] == [False, False, False, True]
    assert make_sampler(domains=[small, large]).domains == [large]
    assert make_sampler("all", domains=[small, large]).domains == [small, large]
    assert can_serve(small, "train", ways=3)


def test_fixed_episodes_of_fewer_ways_keep_a_domain_of_few_classes() -> None:
    small, large = make_domain(0, classes=6), make_domain(1, classes=40)
    settings: dict[str, Any] = {"transform": ImageTransform((8, 8)), "shots": 1, "queries": 1}
    assert [episode.domain for episode in FixedEpisodes([small, large], "train", 1, **settings)] == [large.name]
    few = FixedEpisodes([small, large], "train", 1, ways=3, **settings)
    assert [(episode.domain, episode.ways) for episode in few] == [(small.name, 3), (large.name, 3)]


def test_no_usable_domain_is_one_error_that_counts_the_classes() -> None:
    with pytest.raises(DataError, match=r"5 classes in split 'test'.*domain0 2"):
        make_sampler("test", domains=[make_domain(0, classes=12)])
    with pytest.raises(DataError, match="no domain at all"):
        make_sampler(domains=[])


def test_more_ways_than_classes_names_the_domain() -> None:
    with pytest.raises(DataError, match=r"'domain1' has 8 classes .* 9 ways"):
        make_sampler("all", domains=[make_domain(0), make_domain(1, classes=8)], ways=9)


def test_a_class_with_too_few_images_is_named() -> None:
    domain = Domain("birds", {name: NumberedImages(0, 0, 6 if name != "wren" else 3) for name in [*"abcde", "wren"]})
    make_sampler("all", domains=[domain], shots=2)
    with pytest.raises(DataError, match=r"'birds': class 'wren' has 3 images.* 3 in the support"):
        make_sampler("all", domains=[domain], shots=3)
    with pytest.raises(DataError, match=r"'domain0': class '0' has 1 images"):
        make_sampler("all", domains=[make_domain(images=1)])


@pytest.mark.parametrize(
    "settings",
    [
        {"split": "tset"},
        {"ways": 1},
        {"shots": 0},
        {"queries": 0},
        {"seed": -1},
        {"max_ways": 4},
        {"max_support": 49},
        {"ways": 60, "max_support": 59},
    ],
    ids=str,
)
def test_an_argument_out_of_range_is_named(settings: dict[str, Any]) -> None:
    name = "max_support" if "max_support" in settings else next(iter(settings))
    with pytest.raises(ConfigurationError, match=name):
        make_sampler(**settings)


def test_fixed_shots_need_no_place_for_as_many_support_images_as_classes() -> None:
    assert make_sampler(ways=5, shots=1, max_support=4)[0].ways == 5


def test_episodes_are_numbered_from_zero() -> None:
    with pytest.raises(IndexError, match="-1"):
        make_sampler()[-1]


def test_without_a_transform_all_images_get_the_size_of_the_first() -> None:
    images = {name: [Image.new("RGB", (6, 4), "white"), Image.new("RGB", (9, 9))] for name in "abcde"}
    episode = EpisodeSampler([Domain("d", images)], "all", shots=1)[0]
    assert episode.support.shape[1:] == (3, 4, 6)
    assert {*episode.support.unique().tolist(), *episode.query.unique().tolist()} == {-1.0, 1.0}
