"""Episode manifests: the very same episodes again, also where files lie elsewhere, and one clear error otherwise."""

import json
import shutil

import pytest
import torch
from PIL import Image

from smat_peft import evaluate, load_domain
from smat_peft.errors import CheckpointError, DataError
from smat_peft.evaluation.manifest import write_manifest
from smat_peft.evaluation.protocol import EvaluationDomain, episode_samplers
from tests.class_folders import write_classes
from tests.evaluation.small import undecided


@pytest.fixture
def folder(tmp_path):
    """A domain of files: 6 classes of 5 images, each of a colour of its own."""

    def draw(number, image):
        return Image.new("RGB", (16, 16), (40 * number, 50 * image, 9))

    return write_classes(tmp_path / "birds", [f"class {number}" for number in range(6)], 5, draw)


def queries(domains, transform, **settings):
    """The episodes that a predictor sees, by domain and number."""
    seen = {}

    def predict(episode):
        seen[episode.domain, episode.index] = episode
        return undecided(episode)

    evaluate({"mine": predict}, domains, transform=transform, progress=False, **settings)
    return seen


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key].query, other[key].query) and torch.equal(one[key].support, other[key].support)
        for key in one
    )


@pytest.fixture
def written(folder, make_domain, transform, tmp_path):
    """A manifest of two domains, one of files and one of images in memory, and what it was written for."""
    domains = [
        EvaluationDomain("id", load_domain(f"folder:{folder}"), "all"),
        EvaluationDomain("test_ood", make_domain("b"), "all"),
    ]
    samplers = episode_samplers(domains, transform=transform, shots=1, queries=2, seed=3)
    write_manifest(tmp_path / "episodes.jsonl", samplers.values(), 4)
    return domains, tmp_path / "episodes.jsonl"


def test_an_evaluation_of_a_manifest_sees_the_very_same_episodes(written, transform):
    domains, path = written
    expected = queries(domains, transform, episodes=4, shots=1, queries=2, seed=3)
    assert len(expected) == 8
    assert same(queries(domains, transform, manifest=path), expected)
    assert same(queries(domains[1:], transform, manifest=path), {key: expected[key] for key in expected if "b" in key})


def test_a_line_names_every_image(written):
    lines = [json.loads(line) for line in written[1].read_text().splitlines()]
    assert [(line["domain"], line["split"], line["index"]) for line in lines[::4]] == [
        ("birds", "all", 0),
        ("b", "all", 0),
    ]
    first = lines[0]
    for part in ("support", "query"):
        named = zip(first["classes"], first[part], first[f"{part}_files"], strict=True)
        assert all(files == [f"{name}/{number}.png" for number in numbers] for name, numbers, files in named)
    assert "query_files" not in lines[4]


def test_files_are_found_by_their_names_when_others_have_joined_them(written, folder, transform, tmp_path):
    domains, path = written
    expected = queries(domains[:1], transform, manifest=path)
    moved = tmp_path / "elsewhere" / "birds"
    shutil.copytree(folder, moved)
    for class_folder in moved.iterdir():
        Image.new("RGB", (16, 16)).save(class_folder / "- first.png")
    others = [EvaluationDomain("id", load_domain(f"folder:{moved}"), "all")]
    assert same(queries(others, transform, manifest=path), expected)


def test_a_missing_image_is_one_clear_error(written, folder, transform):
    _, path = written
    line = json.loads(path.read_text().splitlines()[0])
    missing = line["query_files"][2][0]
    (folder / missing).unlink()
    again = [EvaluationDomain("id", load_domain(f"folder:{folder}"), "all")]
    with pytest.raises(DataError, match=f"'birds' lacks image {missing}"):
        queries(again, transform, manifest=path)
    shutil.rmtree(folder / line["classes"][0])
    fewer = [EvaluationDomain("id", load_domain(f"folder:{folder}"), "all")]
    with pytest.raises(DataError, match=f"'birds' lacks class '{line['classes'][0]}'"):
        queries(fewer, transform, manifest=path)


def test_a_place_that_is_not_there_is_one_clear_error(written, make_domain, transform):
    _, path = written
    with pytest.raises(DataError, match=r"'b' lacks image \d of class 'class \d'.* and others; give the images"):
        queries([("test_ood", make_domain("b", images=2), "all")], transform, manifest=path)


def test_a_manifest_that_does_not_fit_is_one_clear_error(written, make_domain, transform, tmp_path):
    _, path = written
    with pytest.raises(DataError, match="has no episodes of c"):
        queries([("id", make_domain("c"), "all")], transform, manifest=path)
    with pytest.raises(DataError, match="its episodes of 'b' are of split 'all', and 'train' is asked for"):
        queries([("id", make_domain("b"), "train")], transform, manifest=path)
    with pytest.raises(DataError, match="cannot be read"):
        queries([("id", make_domain("b"), "all")], transform, manifest=tmp_path / "none.jsonl")
    path.write_text('{"domain": "b", "split": "all"}\n')
    with pytest.raises(DataError, match="cannot be read: KeyError"):
        queries([("id", make_domain("b"), "all")], transform, manifest=path)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write"):
        write_manifest(tmp_path / "file" / "episodes.jsonl", [], 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[0].update(query_files=lines[0]["support_files"]),
        lambda lines: lines[0].update(index=1.5),
        lambda lines: lines[0].update(classes=lines[0]["classes"][:1] * len(lines[0]["classes"])),
        lambda lines: lines[0].update(query_files=[[] for _ in lines[0]["classes"]]),
        lambda lines: lines[1].update(index=0),
        lambda lines: lines[0]["query_files"][0].__setitem__(0, "another class/0.png"),
    ],
    ids=["query in support", "no whole number", "one class", "no query", "twice", "file of another class"],
)
def test_episodes_that_are_none_are_refused(written, transform, change):
    domains, path = written
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=r"is none: it needs|have one number|lacks"):
        queries(domains, transform, manifest=path)
