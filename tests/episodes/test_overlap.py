from pathlib import Path

import pytest
from PIL import Image

from smat_peft.episodes.builtin import ROLES
from smat_peft.episodes.builtin.lazy import LazyImages
from smat_peft.episodes.domain import Domain
from smat_peft.episodes.domains import load_domain, load_domains
from smat_peft.episodes.overlap import IMAGES_COMPARED, shared_content


def make_domain(folder: Path, classes: dict[str, list[int]], split: str = "") -> Domain:
    """A folder whose images are each of one grey; all its classes are for training, or as said."""
    for name, greys in classes.items():
        (folder / name).mkdir(parents=True)
        for number, grey in enumerate(greys):
            Image.new("L", (3, 3), grey).save(folder / name / f"{number:02}.png")
    (folder / "splits.json").write_text(f'{{"{split or "train"}": {[*classes]}}}'.replace("'", '"'))
    return load_domain(f"folder:{folder}")


def test_domains_that_share_nothing_are_passed_over(tmp_path: Path) -> None:
    training = make_domain(tmp_path / "birds", {"wren": [1, 2], "0": [3, 4]})
    unseen = make_domain(tmp_path / "signs", {"stop": [5, 6], "0": [7, 8]})  # a number is no name
    assert shared_content([training], [unseen]) == []
    assert shared_content([], []) == []


@pytest.mark.parametrize("split", ["train", "validation"])
def test_shared_names_are_said_with_where_they_are_from(tmp_path: Path, split: str) -> None:
    training = make_domain(tmp_path / "birds", {"House_Wren": [1, 2], "owl": [3, 4]}, split)
    unseen = make_domain(tmp_path / "zoo", {"house-wren": [5, 6], "bear": [7, 8]})
    (sentence,) = shared_content([training], [unseen])
    assert sentence.startswith("zoo is named as not trained on, but 1 of its classes have names of training classes")
    assert "house-wren (birds/House_Wren)" in sentence


def test_shared_images_are_said_whatever_their_files_are_called(tmp_path: Path) -> None:
    training = make_domain(tmp_path / "birds", {"wren": [1, 2], "owl": [3, 4]})
    unseen = make_domain(tmp_path / "zoo", {"fowl": [9, 4, 8]})
    (sentence,) = shared_content([training], [unseen])
    assert sentence.endswith("holds images that training has, too: zoo/fowl 1 (birds/owl 1).")


def test_many_are_counted_and_a_few_named(tmp_path: Path) -> None:
    classes = {f"bird {letter}": [number * 2, number * 2 + 1] for number, letter in enumerate("abcde")}
    training, unseen = make_domain(tmp_path / "birds", classes), make_domain(tmp_path / "more", classes)
    names, images = shared_content([training], [unseen])
    assert "5 of its classes" in names
    assert names.endswith("bird a (birds/bird a), bird b (birds/bird b), bird c (birds/bird c) and 2 more.")
    assert images.endswith("more/bird b 0 (birds/bird b 0) and 7 more.")


def test_classes_that_are_only_tested_on_are_not_training(tmp_path: Path) -> None:
    training = make_domain(tmp_path / "birds", {"wren": [1, 2]}, "test")
    unseen = make_domain(tmp_path / "zoo", {"wren": [1, 2]})
    assert shared_content([training], [unseen]) == []


def test_images_of_another_size_with_the_same_bytes_are_others(tmp_path: Path) -> None:
    training = make_domain(tmp_path / "birds", {"wren": [1, 2]})
    unseen = make_domain(tmp_path / "zoo", {"bear": [5, 6]})
    Image.new("L", (9, 1), 1).save(tmp_path / "zoo" / "bear" / "00.png")
    assert shared_content([training], [unseen]) == []


def test_a_bad_image_and_those_beyond_the_first_are_not_compared(tmp_path: Path) -> None:
    training = make_domain(tmp_path / "birds", {"wren": [*range(IMAGES_COMPARED), 200]})
    (tmp_path / "birds" / "wren" / "00.png").write_bytes(b"no image")
    unseen = make_domain(tmp_path / "zoo", {"bear": [200, 0]})
    assert shared_content([training], [unseen]) == []


def test_the_built_in_suite_shares_nothing_and_none_of_it_is_drawn_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*_: object) -> None:
        raise AssertionError("it is drawn")

    monkeypatch.setattr(LazyImages, "__getitem__", draw)
    training, unseen = load_domains(["builtin:id"]), load_domains(["builtin:dev_ood", "builtin:test_ood"])
    assert len(training) + len(unseen) == sum(map(len, ROLES.values()))
    assert shared_content(training, unseen) == []
