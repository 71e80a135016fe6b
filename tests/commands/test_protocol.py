"""The domains that arguments name: roles, options of test episodes, and everything that is wrong told at once."""

import sys
from pathlib import Path
from typing import Any

import pytest

from smat_peft.commands import meta_tune, protocol
from smat_peft.commands.arguments import DataArguments
from smat_peft.commands.protocol import load_protocol
from smat_peft.errors import DataError
from smat_peft.evaluation.protocol import EvaluationDomain
from tests.commands.small_run import IMAGES


@pytest.fixture
def load(world: Path) -> Any:
    """A function that loads domains of the world, the OOD ones by their specifications."""

    def load(*ood_domains: str, **arguments: Any) -> dict[str, EvaluationDomain]:
        train = arguments.pop("train_domains", ["folder:{data_root}/train/*"])
        data = DataArguments(train, ood_domains=list(ood_domains), data_root=str(world), **arguments)
        return {entry.domain.name: entry for entry in load_protocol(data)}

    return load


def test_a_domain_s_own_options_go_before_those_of_all(load):
    entries = load(
        "folder:{data_root}/other?ways=3&shots=2",
        "folder:{data_root}/few?queries=1&augment=none",
        evaluation_ways=5,
        evaluation_shots=1,
        queries=2,
    )
    assert {name: entry[3:] for name, entry in entries.items()} == {
        "green": (5, 1, 2),
        "red": (5, 1, 2),
        "other": (3, 2, 2),
        "few": (5, 1, 1),
    }
    assert entries["few"].domain.augment == frozenset()


def test_classes_to_test_on_are_chosen_by_role_or_by_name(load):
    entries = load("folder:{data_root}/other?name=seen&classes=train&ways=2", "folder:{data_root}/few")
    assert {name: entry.split for name, entry in entries.items()} == {
        "green": "test",
        "red": "test",
        "seen": "train",
        "few": "all",
    }


def test_one_folder_is_tested_in_several_ways_and_read_once(load, monkeypatch):
    read = []
    load_domains = protocol.load_domains
    monkeypatch.setattr(protocol, "load_domains", lambda specs, **kw: read.append(specs) or load_domains(specs, **kw))
    entries = load("folder:{data_root}/other?name=one&shots=1", "folder:{data_root}/other?name=two&shots=2")
    assert [entries[name].shots for name in ("one", "two")] == [1, 2]
    assert len(read) == 2  # training domains, and the folder


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("folder:{data_root}/other?ways=1", "ways must be a whole number, at least 2, got '1'"),
        ("folder:{data_root}/other?shots=few", "shots must be a whole number, at least 1, got 'few'"),
        ("folder:{data_root}/other?queries=", "queries must be a whole number, at least 1, got ''"),
        ("folder:{data_root}/other?classes=some", "classes must be one of train, validation, test, all, got 'some'"),
        ("folder:{data_root}/other?name=", "name must not be empty"),
        ("folder:{data_root}/train/*?name=both", "stands for 2 domains, which cannot all be named 'both'"),
        ("folder:{data_root}/other?colour=red", "unknown option 'colour'"),
        ("folder:{data_root}/other?name=red", "two domains are named 'red', from"),
        ("folder:{data_root}/few?classes=test&ways=5", "no domain has the 5 classes in split 'test'"),
        ("folder:{data_root}/other?ways=7", "has 6 classes in split 'all', too few for 7 ways"),
        (f"folder:{{data_root}}/other?shots={IMAGES}", f"has {IMAGES} images, too few for {IMAGES} in the support"),
    ],
)
def test_a_wrong_option_is_one_error(load, spec, message):
    with pytest.raises(DataError) as error:
        load(spec)
    assert message in str(error.value)


@pytest.mark.parametrize("classes", ["train", "all"])
def test_a_domain_is_not_tested_on_the_classes_that_it_is_trained_on(load, classes):
    with pytest.raises(DataError, match="'red' is trained on, so it cannot be tested on classes="):
        load(train_domains=[f"folder:{{data_root}}/train/red?classes={classes}"])


def test_test_episodes_are_not_asked_for_where_none_are_wanted(load):
    assert "other" in load("folder:{data_root}/other?ways=7", evaluation_episodes=0)


@pytest.mark.parametrize("dry_run", [[], ["--dry_run"]])
def test_all_that_is_missing_or_unreadable_is_told_at_once_before_a_model_is_loaded(
    make_world, tmp_path, monkeypatch, capsys, dry_run
):
    def load_backbone(_: str) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(meta_tune, "load_backbone", load_backbone)
    root = make_world(tmp_path / "root")
    (root / "other" / "class03" / "2.png").write_bytes(b"no image")
    train = ["--train_domains", "folder:{data_root}/train/*", "h5:{data_root}/omniglot", "h5:{data_root}/aircraft"]
    ood = ["--ood_domains", "folder:{data_root}/other", "folder:{data_root}/few?shots=9", "hub:someone/unknown"]
    capsys.readouterr()
    output = ["--data_root", str(root), "--output_dir", str(tmp_path / "run"), *dry_run]
    assert meta_tune.main([*train, *ood, *output]) == 2
    first, *told = capsys.readouterr().err.splitlines()
    assert first == "error: these domains cannot be used:"
    for part, line in zip(
        [
            f"- {root}/omniglot is not a folder; give the folder of one source",
            f"- {root}/aircraft is not a folder; give the folder of one source",
            f"- {root}/other/class03/2.png cannot be read as an image",
            "- domain 'few': class 'class00' has 4 images, too few for 9 in the support",
            "- hub:someone/unknown cannot be loaded",
            f"{{data_root}} is '{root}' (--data_root)",
        ],
        told,
        strict=True,
    ):
        assert line.startswith(part)
    assert not (tmp_path / "run").exists()


def test_what_several_domains_lack_alike_is_told_once(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError) as error:
        load("h5:/data/omniglot", "h5:/data/aircraft")
    assert str(error.value) == ".h5 files need h5py; install it with: pip install 'smat_peft[h5]'"
