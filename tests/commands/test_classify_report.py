"""What `classify` makes of probabilities and of right and wrong answers: suspects, one sentence, a page."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from smat_peft.commands.answers import Answers
from smat_peft.commands.compare_methods import splits
from smat_peft.commands.comparison import Comparison, paired_difference
from smat_peft.commands.contact_sheet import write_contact_sheet
from smat_peft.commands.support_report import mislabelled
from smat_peft.errors import DataError


def test_only_an_image_that_another_class_would_take_for_its_own_looks_mislabelled():
    probabilities = np.array(
        [
            [0.9, 0.1, 0.0],
            [0.7, 0.2, 0.1],
            [0.1, 0.9, 0.0],  # 0: as sure as class 1 is of its own
            [0.1, 0.8, 0.1],
            [0.2, 0.7, 0.1],
            [0.5, 0.4, 0.1],  # 1: wrong, but less sure than class 0 is of its own
            [0.8, 0.1, 0.1],  # 2: class 0 would take it
        ]
    )
    given = np.array([0, 0, 0, 1, 1, 1, 2])
    assert mislabelled(probabilities, given) == [2, 6]


def test_two_classes_as_good_as_equal_make_no_image_look_mislabelled():
    probabilities = np.array([[0.494, 0.506], [0.499, 0.501], [0.51, 0.49], [0.505, 0.495]])
    assert mislabelled(probabilities, np.array([0, 0, 1, 1])) == []


def test_a_class_that_cannot_be_sure_of_itself_takes_no_image_from_another():
    probabilities = np.array([[0.4, 0.6, 0.0], [0.9, 0.1, 0.0]])
    assert mislabelled(probabilities, np.array([0, 0])) == []  # no image of class 1 was left out


def comparison(*rows):
    """Of methods that are right about so many of 40 images; those of a method are the first ones."""
    correct = np.array([[float(image < right) for image in range(40)] for right in rows])
    return Comparison(["prototypes", "logistic regression", "adapter"][: len(rows)], correct)


@pytest.mark.parametrize(
    ("right", "sentence"),
    [
        (
            (30, 30, 30),
            "Use prototypes: nothing is better, and with 40 images a difference below 4.7 points is noise.",
        ),
        (
            (30, 28, 32),
            "Use prototypes: adapter is 5.0 points better, but with 40 images a difference below 8.0 points is noise.",
        ),
        (
            (20, 24, 36),
            "Use adapter: it is 30.0 points better than what is simpler, "
            "and with 40 images a difference below 14.4 points is noise.",
        ),
        (
            (20, 36, 37),
            "Use logistic regression: adapter is 2.5 points better, "
            "but with 40 images a difference below 6.6 points is noise.",
        ),
    ],
)
def test_the_simplest_method_that_nothing_beats_by_more_than_noise_is_named(right, sentence):
    assert comparison(*right).conclusion() == sentence


def test_a_method_that_is_named_is_better_than_what_is_simpler_by_more_than_noise():
    draws = np.random.default_rng(0)
    named = 0
    for _ in range(300):
        correct = (draws.random((3, 40)) < np.array([[0.7], [0.8], [0.45]])).astype(float)
        sentence = Comparison(["prototypes", "regression", "adapter"], correct).conclusion()
        if found := re.search(r"it is ([\d.]+) points better than what is simpler.* below ([\d.]+) points", sentence):
            assert float(found[1]) > float(found[2])
            named += 1
    assert named > 20


def test_the_table_shows_accuracy_interval_and_the_paired_difference():
    lines = comparison(30, 28, 32).table().splitlines()
    assert lines[0].split("  ")[-1].strip() == "difference to prototypes"
    assert lines[2].split() == ["prototypes", "75.0", "59.8", "to", "85.8"]
    assert lines[4].split() == ["adapter", "80.0", "65.2", "to", "89.5", "+5.0", "±", "8.0"]


def test_the_noise_of_a_difference_is_that_of_agresti_and_min():
    ours, theirs = np.zeros(100), np.zeros(100)
    ours[:14], theirs[14:20] = 1, 1  # 14 pairs one way, 6 the other
    difference, half_width = paired_difference(ours, theirs)
    b, c, n = 14.5, 6.5, 102.0  # half a pair more in each cell
    assert difference == pytest.approx(0.08)
    assert half_width == pytest.approx(1.96 * np.sqrt(b + c - (b - c) ** 2 / n) / n)


def test_every_image_is_classified_as_often_and_never_learned_from_at_once():
    codes = np.repeat(np.arange(8), 5)
    parts = splits(codes)
    assert len(parts) == 10
    times = np.zeros(40)
    for train, test in parts:
        assert sorted([*train, *test]) == list(range(40))
        assert np.bincount(codes[test]).tolist() == [1] * 8
        times[test] += 1
    assert set(times) == {2}
    assert any((a[1] != b[1]).any() for a, b in zip(parts, splits(codes, seed=1), strict=True))


def test_classes_of_different_sizes_are_all_learned_from_each_time():
    codes = np.array([0] * 9 + [1, 1, 2])
    for train, test in splits(codes):
        assert set(codes[train]) == {0, 1, 2}
        assert 2 not in codes[test]


def test_too_few_images_to_split_are_an_error():
    with pytest.raises(DataError, match="at least two classes with two images each"):
        splits(np.array([0, 0, 1, 2]))


class Page(HTMLParser):
    """What a browser would see of a page: text, tags, and the attributes of figures and pictures."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.figures, self.pictures, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "figure":
            self.figures.append(dict(attrs).get("class"))
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_each_image_the_least_sure_first_and_escapes_names(tmp_path):
    names = ["<b>&bold", "<script>alert('x')</script>"]
    paths = []
    for number, colour in enumerate(["red", "blue"]):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (400, 200), colour).save(paths[-1])
    answers = Answers(["a\"'<i>.png", "b.png"], paths, [names[0], names[0]], names, np.array([[0.9, 0.1], [0.4, 0.6]]))
    write_contact_sheet(tmp_path / "sheet.html", answers, "photos <of> mine")
    page = Page((tmp_path / "sheet.html").read_text(encoding="utf-8"))
    assert page.figures == ["wrong", None]
    assert not {"script", "i", "of"} & set(page.tags)
    assert page.tags.count("b") == 2
    for text in (
        *names,
        "a\"'<i>.png",
        "photos <of> mine",
        "Accuracy 50.0 %",
        f"in folder {names[0]}",
        "or <b>&bold 40%",
    ):
        assert text in page.text
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))))
        for source in page.pictures
    ]
    assert [picture.size for picture in pictures] == [(160, 80)] * 2
    assert [picture.getpixel((5, 5))[2] > 200 for picture in pictures] == [True, False]
