"""The built-in suite: its domains and roles, images that are the same on every machine and differ within a class."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from smat_peft.episodes.builtin import (
    KINDS,
    PRETRAINING,
    ROLES,
    builtin_names,
    digits,
    glyphs,
    load_builtin,
    load_pretraining,
)
from smat_peft.episodes.builtin.digits import IMAGES as DIGIT_IMAGES
from smat_peft.episodes.builtin.glyphs import FACES, draw_glyph, faces_of, images_of
from smat_peft.episodes.builtin.lazy import LazyImages, random_for
from smat_peft.episodes.domain import MIN_CLASSES
from smat_peft.errors import DataError

FINGERPRINT = Path(__file__).parents[1] / "golden" / "builtin_fingerprint.json"
ROUNDING = 10  # grey levels of 255, of the mean of 8 x 8 pixels; another version of FreeType moves edges by less
SCRIPTS = ("greek", "cyrillic", "armenian", "georgian", "canadian", "hebrew", "arrows", "arabic", "lao")

every_domain = pytest.mark.parametrize("name", [*builtin_names(), *PRETRAINING])


def load(name):
    """A domain of the suite or of the pre-training."""
    return load_builtin(name) if name in builtin_names() else load_pretraining()[PRETRAINING.index(name)]


def pixels(image):
    return np.asarray(image)


def coarse(image):
    """Means of 8 x 8 pixels, in row order."""
    return pixels(image).reshape(4, 8, 4, 8, 3).mean(axis=(1, 3, 4)).ravel()


def some_classes(domain, count=6):
    names = domain.classes("all")
    return names[:: max(1, len(names) // count)]


def test_roles_name_each_domain_once_and_none_of_the_pretraining():
    names = [*builtin_names(), *PRETRAINING]
    assert sorted(names) == sorted(set(names))
    assert list(ROLES) == ["id", "dev_ood", "test_ood"]
    assert [domain.name for domain in load_pretraining()] == list(PRETRAINING)


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    with pytest.raises(DataError, match=r"'klingon'.*greek.*digits"):
        load_builtin("klingon")
    with pytest.raises(DataError, match="'latin'"):
        load_builtin("latin")


@pytest.mark.parametrize("name", ROLES["id"])
def test_domains_to_meta_tune_on_have_enough_classes_in_every_split(name):
    domain = load_builtin(name)
    assert min(len(domain.classes(split)) for split in ("train", "validation", "test")) >= MIN_CLASSES


@pytest.mark.parametrize("role", ["dev_ood", "test_ood"])
def test_each_role_that_is_never_meta_tuned_on_holds_at_least_three_kinds(role):
    assert sum(bool(set(names) & set(ROLES[role])) for names in KINDS.values()) >= 3


def test_digits_and_flags_are_looked_at_last():
    assert {"digits", "flags"} <= set(ROLES["test_ood"])
    assert len(load_builtin("digits").classes("all")) == 10


def test_every_domain_has_more_than_twenty_classes_but_the_ten_digits():
    assert [name for name in builtin_names() if len(load_builtin(name).classes("all")) < 20] == ["digits"]


@every_domain
def test_images_are_32_by_32_rgb(name):
    domain = load(name)
    for of_class in some_classes(domain, 2):
        image = domain.class_images[of_class][0]
        assert image.size == (32, 32)
        assert image.mode == "RGB"


@every_domain
def test_no_two_images_of_a_class_have_the_same_pixels(name):
    domain = load(name)
    for of_class in some_classes(domain, 10):
        images = domain.class_images[of_class]
        assert len({image.tobytes() for image in images}) == len(images), of_class


def test_no_two_scans_of_digits_have_the_same_pixels():
    scans = [image.tobytes() for images in load_builtin("digits").class_images.values() for image in images]
    assert len(set(scans)) == len(scans) == 10 * DIGIT_IMAGES


def test_the_class_of_a_digit_holds_scans_of_that_digit():
    bunch = load_digits()
    labels = {image.tobytes(): label for image, label in zip(bunch.images, bunch.target, strict=True)}
    digits._scans.cache_clear()  # or another test has sorted them
    for digit, scans in digits._scans().items():
        assert {labels[scan.tobytes()] for scan in scans} == {digit}


def test_an_image_does_not_depend_on_which_images_were_drawn_before_it():
    forwards, backwards = load_builtin("fabrics"), load_builtin("fabrics")
    of_class = forwards.classes("all")[0]
    first = [pixels(forwards.class_images[of_class][number]) for number in range(5)]
    last = [pixels(backwards.class_images[of_class][number]) for number in reversed(range(5))]
    assert all(np.array_equal(one, other) for one, other in zip(first, reversed(last), strict=True))


def test_images_are_drawn_at_their_first_use_and_kept():
    drawn = []
    images = LazyImages(lambda number: drawn.append(number) or draw_glyph("greek", "Σ", number), 5)
    assert len(images) == 5
    assert drawn == []
    assert images[3] is images[3]
    assert images[-2] is images[3]
    assert drawn == [3]
    assert len(images[1:3]) == 2
    with pytest.raises(IndexError):
        images[5]


def test_random_numbers_depend_on_every_part_of_a_name():
    draws = [random_for(*name).random() for name in (("a", "b", 1), ("a", "b", 2), ("a", "c", 1), ("d", "b", 1))]
    assert len(set(draws)) == 4
    assert random_for("a", "b", 1).random() == draws[0]


def test_a_class_of_characters_has_three_images_a_face_and_twenty_at_most():
    assert (len(faces_of("א")), images_of("א")) == (4, 12)
    assert (len(faces_of("Σ")), images_of("Σ")) == (16, 20)
    assert (len(faces_of("Ա")), images_of("Ա")) == (12, 20)
    for name in SCRIPTS:
        domain = load_builtin(name)
        for character, images in domain.class_images.items():
            assert len(images) == images_of(character)
            assert len(faces_of(character)) >= 4, f"{name}: {character}"


def test_faces_are_used_in_turn(monkeypatch):
    outline, used = glyphs.outline, []
    monkeypatch.setattr(glyphs, "outline", lambda character, face: used.append(face) or outline(character, face))
    for number in range(16):
        draw_glyph("greek", "Σ", number)
    assert used == list(FACES)


def test_characters_come_dark_on_light_and_light_on_dark_in_several_greys():
    images = [pixels(image) for image in load_builtin("greek").class_images["Σ"]]
    corners = np.array([np.median(image) for image in images])  # most of an image is background
    assert (corners < 100).sum() >= 3
    assert (corners > 150).sum() >= 3
    assert len(set(corners.tolist())) > 10


@pytest.mark.parametrize("name", [*SCRIPTS, "digits"])
def test_writing_is_neither_mirrored_nor_cropped_in_training(name):
    assert load_builtin(name).augment == {"colour"}


def digest(names):
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def test_the_suite_looks_the_same_as_when_it_was_made():
    recorded = json.loads(FINGERPRINT.read_text())
    assert list(recorded) == [*builtin_names(), *PRETRAINING]
    for name, classes in recorded.items():
        domain = load(name)
        assert digest(domain.classes("all")) == classes["names"]
        for of_class, expected in classes["means"].items():
            found = np.stack([coarse(domain.class_images[of_class][number]) for number in (0, 1)])
            assert np.abs(found - np.array(expected)).max() < ROUNDING, f"{name}: {of_class}"
