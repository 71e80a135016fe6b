import json
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from smat_peft.episodes.domains import load_domain
from smat_peft.episodes.h5 import MAX_OPEN_FILES, H5Images
from smat_peft.episodes.hierarchies import Bilevel, Ontology
from smat_peft.episodes.images import ImageTransform
from smat_peft.episodes.meta_dataset import read_specification
from smat_peft.episodes.sampling import EpisodeSampler
from smat_peft.errors import ConfigurationError, DataError
from tests.episodes.h5_source import specification, write_source
from tests.episodes.loading import forks, loaded, same
from tests.processes import python

TRANSFORM = ImageTransform((4, 4))


def bilevel() -> dict[str, Any]:
    """Five groups of 6, 3 | 5, 7 | 5 classes."""
    sizes = {"0": 6, "1": 3, "2": 5, "3": 7, "4": 5}
    content = specification((9, 12, 5))
    del content["classes_per_split"]
    return content | {"superclasses_per_split": {"TRAIN": 2, "VALID": 2, "TEST": 1}, "classes_per_superclass": sizes}


def hierarchical() -> dict[str, Any]:
    """Six training classes a..f under top and, a..e, under inner; small, over e and f, is no node for an episode."""

    def node(name: str, *children: str) -> dict[str, Any]:
        return {"wn_id": name, "words": name, "children_ids": list(children), "parents_ids": []}

    leaves = ["f", "c", "a", "b", "e", "d"]
    graph = [
        node("top", "inner", "small"),
        node("inner", "a", "b", "c", "left"),
        node("left", "d", "e"),
        node("small", "e", "f"),
        *map(node, leaves),
    ]
    return {
        "name": "net",
        "split_subgraphs": {"TRAIN": graph, "VALID": [], "TEST": [node("g"), node("h")]},
        "images_per_class": {
            "TRAIN": {"top": 99, **{leaf: 2 + number for number, leaf in enumerate("abcdef")}},
            "VALID": {},
            "TEST": {"g": 8, "h": 9},
        },
        "class_names": dict(zip("01234567", [*leaves, "g", "h"], strict=True)),
        "file_pattern": "{}.tfrecords",
    }


def make_source(folder: Path, content: dict[str, Any] | None = None, images: int = 6) -> Path:
    """A source whose image `j` of class `c` is full of (c, j, 0)."""

    def draw(number: int, image: int) -> np.ndarray:
        return np.full((5, 4, 3), (number, image, 0), dtype=np.uint8)

    return write_source(folder, content or specification(), images, draw)


def test_a_source_is_a_domain_with_its_own_names_and_splits(tmp_path: Path) -> None:
    domain = load_domain(f"h5:{make_source(tmp_path / 'birds')}")
    assert domain.name == "birds"
    assert domain.classes("train") == [f"bird {number}" for number in range(5)]
    assert domain.classes("validation") == ["bird 5", "bird 6"]
    assert domain.classes("test") == ["bird 7", "bird 8", "bird 9"]
    assert domain.hierarchies == {}
    images = domain.images("test", "bird 8")
    assert [image.getpixel((0, 0)) for image in images] == [(8, number, 0) for number in range(6)]
    assert (images[0].mode, images[0].size) == ("RGB", (4, 5))


def test_augmentations_can_be_chosen(tmp_path: Path) -> None:
    assert load_domain(f"h5:{make_source(tmp_path / 'birds')}?augment=colour").augment == {"colour"}


def test_omniglots_alphabets_are_a_hierarchy_by_split(tmp_path: Path) -> None:
    domain = load_domain(f"h5:{make_source(tmp_path / 'omniglot', bilevel())}")
    assert [len(domain.classes(split)) for split in ("train", "validation", "test")] == [9, 12, 5]
    groups = {split: [list(group) for group in hierarchy.groups] for split, hierarchy in domain.hierarchies.items()}
    assert groups == {  # the group of three classes makes no episode
        "train": [[*range(6)]],
        "validation": [[*range(5)], [*range(5, 12)]],
        "test": [[*range(5)]],
    }
    sampler = EpisodeSampler([domain], "validation", transform=TRANSFORM)
    starts = {min(sampler.describe(index).classes, key=lambda name: int(name[5:])) for index in range(40)}
    assert "bird 9" in starts


def test_imagenets_graph_is_a_hierarchy_of_the_classes_under_each_node(tmp_path: Path) -> None:
    found = read_specification(make_source(tmp_path / "net", hierarchical()))
    assert found.names == ["f", "c", "a", "b", "e", "d", "g", "h"]
    assert found.sizes == [7, 4, 2, 3, 6, 5, 8, 9]
    assert found.splits == {"train": range(6), "validation": range(6, 6), "test": range(6, 8)}
    # By their sum top, 0+1+2+3+4+5, comes with inner, 1+2+3+4+5, and then by their numbers.
    assert found.hierarchies == {"train": Ontology([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5]])}


def test_nodes_are_sorted_by_the_sum_of_their_classes_and_those_too_small_or_large_are_left_out(tmp_path: Path) -> None:
    leaves = [f"l{number:03}" for number in range(394)]
    node = {"words": "", "parents_ids": []}
    graph = [node | {"wn_id": leaf, "children_ids": []} for leaf in leaves]
    parents = {
        "n0": ["n1", "n2", "n3", "n4"],
        "n1": leaves[9:14],
        "n2": leaves[:5],
        "n3": leaves[1:],
        "n4": leaves[:-2],
    }
    parents["n5"] = leaves[:4]
    parents["n0"].append("n5")
    graph += [node | {"wn_id": name, "children_ids": children} for name, children in parents.items()]
    content = {
        "split_subgraphs": {"TRAIN": graph, "VALID": [], "TEST": []},
        "images_per_class": {"TRAIN": dict.fromkeys(leaves, 2), "VALID": {}, "TEST": {}},
        "class_names": {f"{number}": leaf for number, leaf in enumerate(leaves)},
        "file_pattern": "{}.tfrecords",
    }
    (tmp_path / "dataset_spec.json").write_text(json.dumps(content))
    hierarchy = read_specification(tmp_path).hierarchies["train"]
    assert hierarchy == Ontology([[*range(5)], [*range(9, 14)], [*range(392)]])


def test_open_files_are_bounded_however_many_classes_are_drawn(tmp_path: Path) -> None:
    classes = MAX_OPEN_FILES + 40
    domain = load_domain(f"h5:{make_source(tmp_path / 'birds', specification((classes, 0, 0), 2), images=2)}")
    for _ in range(2):
        for number, name in enumerate(domain.classes("all")):
            assert domain.images("all", name)[1].getpixel((0, 0)) == (number, 1, 0)
            assert 0 < h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) <= MAX_OPEN_FILES


@forks
def test_loading_processes_give_the_episodes_that_one_process_gives(tmp_path: Path) -> None:
    domain = load_domain(f"h5:{make_source(tmp_path / 'birds')}")
    sampler = EpisodeSampler([domain], "train", 5, 2, 2, transform=TRANSFORM)
    alone = [sampler[index] for index in range(6)]  # leaves files open, which a forked process must not use
    together = loaded(sampler, range(6), workers=2)
    assert all(same(one, other) for one, other in zip(alone, together, strict=True))
    copy = pickle.loads(pickle.dumps(sampler))
    assert same(copy[3], alone[3])


def test_a_pickled_specification_is_refused_with_the_way_to_the_json(tmp_path: Path) -> None:
    folder = make_source(tmp_path / "aircraft")
    (folder / "dataset_spec.json").unlink()
    with pytest.raises(DataError, match=r"aircraft holds no dataset_spec\.json"):
        load_domain(f"h5:{folder}")
    (folder / "dataset_spec.pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(DataError, match=r"is a pickle.*dataset_specs/aircraft_dataset_spec\.json.*convert_from_pkl"):
        load_domain(f"h5:{folder}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_pattern": "../{}.tfrecords"}, r"file_pattern must be '{}.tfrecords', got '\.\./{}\.tfrecords'"),
        ({"file_pattern": "{}_{}.tfrecords"}, "file_pattern must be"),
        ({"class_names": {"../secret": "x"}}, "has no entry '0'"),
        ({"class_names": {"0": "x"}}, "10 classes, 1 names, 10 numbers of images"),
        ({"class_names": {f"{number}": "x" for number in range(10)}}, "several classes one name"),
        ({"class_names": {f"{number}": number for number in range(10)}}, "must be strings"),
        ({"classes_per_split": {"TRAIN": 10}}, "has no entry 'VALID'"),
        ({"classes_per_split": {"TRAIN": 12, "VALID": -1, "TEST": -1}}, "fewer than no classes"),
        ({"classes_per_split": {"TRAIN": 10**40, "VALID": 0, "TEST": 0}}, "too large"),
        ({"images_per_class": {f"{number}": {"train": 3} for number in range(10)}}, "whole numbers"),
        ({"images_per_class": [6] * 10}, "list indices"),
        ({"superclasses_per_split": {"TRAIN": 1, "VALID": 1, "TEST": 1}}, "has no entry 'classes_per_superclass'"),
        ({"split_subgraphs": {"TRAIN": [], "VALID": [], "TEST": []}}, "0 classes, 10 names"),
    ],
)
def test_a_specification_that_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = make_source(tmp_path / "birds")
    (folder / "dataset_spec.json").write_text(json.dumps(specification() | changes))
    with pytest.raises(DataError, match=rf"dataset_spec\.json is not a specification of Meta-Dataset.*{message}"):
        load_domain(f"h5:{folder}")


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_a_specification_that_is_no_json_is_named(tmp_path: Path, text: str) -> None:
    folder = make_source(tmp_path / "birds")
    (folder / "dataset_spec.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset_spec\.json cannot be read as JSON"):
        load_domain(f"h5:{folder}")


def test_a_specification_that_is_no_table_is_named(tmp_path: Path) -> None:
    folder = make_source(tmp_path / "birds")
    (folder / "dataset_spec.json").write_text("[]")
    with pytest.raises(DataError, match="is not a specification"):
        load_domain(f"h5:{folder}")


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    folder = make_source(tmp_path / "birds")
    (folder / "3.h5").unlink()
    with pytest.raises(DataError, match=r"lacks the files of 1 of 10 classes, 3\.h5 among them"):
        load_domain(f"h5:{folder}")
    with pytest.raises(DataError, match="nowhere is not a folder"):
        load_domain(f"h5:{tmp_path}/nowhere")


def test_images_that_cannot_be_read_are_named_or_left_out(tmp_path: Path) -> None:
    folder = make_source(tmp_path / "birds")
    (folder / "0.h5").write_bytes(b"this is no HDF5")
    with h5py.File(folder / "1.h5", "r+") as file:
        del file["2"]
        del file["3/image"], file["4/image"]
        file["3/image"] = np.zeros((5, 4), dtype=np.uint8)
        file["4/image"] = np.zeros((5, 4, 3))
    domain = load_domain(f"h5:{folder}")
    with pytest.raises(DataError, match=r"image 0 of .*0\.h5 cannot be read"):
        domain.images("all", "bird 0")[0]
    for number, message in ((2, "cannot be read"), (3, r"must hold bytes \[H, W, 3\].*\[5, 4\]"), (4, ".*got float64")):
        with pytest.raises(DataError, match=rf"image {number} of .*1\.h5 {message}"):
            domain.images("all", "bird 1")[number]
    with (
        pytest.warns(UserWarning, match=r"9 images cannot be read[\s\S]*image 3 of .*1\.h5"),
        pytest.raises(DataError, match="class 'bird 0' has 0 usable images"),
    ):
        load_domain(f"h5:{folder}", on_bad_image="skip")


def test_a_group_too_small_for_episodes_leaves_a_split_without_hierarchy(tmp_path: Path) -> None:
    content = bilevel() | {"superclasses_per_split": {"TRAIN": 3, "VALID": 1, "TEST": 1}}
    content["classes_per_superclass"] = {"0": 3, "1": 3, "2": 4, "3": 11, "4": 5}
    domain = load_domain(f"h5:{make_source(tmp_path / 'omniglot', content)}")
    assert domain.hierarchies.keys() == {"validation", "test"}
    assert domain.hierarchies["validation"] == Bilevel([range(11)])
    EpisodeSampler([domain], "train", transform=TRANSFORM).describe(0)


def test_without_h5py_the_extra_is_named(tmp_path: Path) -> None:
    folder = make_source(tmp_path / "birds")
    program = f"""
import sys
sys.modules["h5py"] = None  # it cannot be imported
from smat_peft.episodes.domains import load_domain
try:
    load_domain("h5:{folder}")
except ValueError as error:
    print(type(error).__name__, error)
"""
    ended = python("-c", program)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(ConfigurationError.__name__)
    assert "pip install 'smat_peft[h5]'" in ended.stdout


def test_images_that_lie_in_another_file_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(range(12)))
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["image"] = np.zeros((2, 2, 3), np.uint8)
    with h5py.File(tmp_path / "0.h5", "w") as file:
        outside = [(str(tmp_path / "secret"), 0, 12)]
        file.create_group("0").create_dataset("image", (2, 2, 3), np.uint8, external=outside)
        file.create_group("1")["image"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "image")
        layout = h5py.VirtualLayout((2, 2, 3), np.uint8)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "image", (2, 2, 3))
        file.create_group("2").create_virtual_dataset("image", layout)
        file.create_group("3")["image"] = np.zeros((2, 2, 3), np.uint8)
    images = H5Images(range(4), tmp_path / "0.h5")
    assert images.read(3).size == (2, 2)
    for place in range(3):
        with pytest.raises(DataError, match="lies in another file"):
            images.read(place)
