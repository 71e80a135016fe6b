"""python -m smat_peft.analyse: which pictures it makes of what, and what it refuses."""

import json

import pytest
import torch

from smat_peft.commands.analyse import PICTURES, main
from smat_peft.commands.meta_tune import main as meta_tune
from smat_peft.errors import CheckpointError
from smat_peft.evaluation.predictors import ModelPredictor
from smat_peft.few_shot.loading import load_adapter, load_backbone
from smat_peft.meta_tuning.learned import load_learned
from tests.commands.small_run import words


@pytest.fixture
def analyse(world, tmp_path, capsys):
    """A function that runs the command on few episodes and returns what it printed."""
    domains = ["--id_domains", f"folder:{world}/train/*", "--dev_ood_domains", f"folder:{world}/other"]
    small = ["--episodes", "2", "--gradient_episodes", "2", "--shots", "1", "--queries", "1"]

    def command(*given, status=0):
        assert main([*map(str, given), *domains, *small, "--output_dir", str(tmp_path / "out")]) == status
        captured = capsys.readouterr()
        return captured.out if status == 0 else captured.err

    return command


def written(folder):
    return {path.name for path in folder.iterdir()}


def test_every_picture_of_an_adapter_comes_with_its_numbers(analyse, adapters, tmp_path):
    analyse(adapters / "two")
    assert written(tmp_path / "out") == {f"{name}.{kind}" for name in PICTURES for kind in ("pdf", "png", "json")}
    selection = json.loads((tmp_path / "out" / "selection.json").read_text())["domains"]
    assert list(selection) == ["green", "red", "other"]
    assert [sum(each["mean_weights"]) for each in selection.values()] == pytest.approx([1, 1, 1], abs=1e-5)
    alignment = json.loads((tmp_path / "out" / "alignment.json").read_text())
    assert len(alignment["trained"]) == 3  # the delta and two experts


def test_a_single_expert_has_no_selection_and_no_overlap(analyse, adapters, tmp_path):
    printed = analyse(adapters / "one", "--pictures", "capacity", "selection", "overlap")
    assert "selection: left out, there is only one expert" in printed
    assert written(tmp_path / "out") == {"capacity.pdf", "capacity.png", "capacity.json"}


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """A run of two updates of two tasks, which kept both checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    every = {"max_steps": 2, "checkpointing_steps": 1, "save_total_limit": 0}
    assert meta_tune(words(world, folder, **every, evaluation_episodes=0, validation_episodes=0)) == 0
    return folder


def test_a_learning_curve_begins_with_the_backbone_and_has_a_point_a_checkpoint(analyse, run, tmp_path):
    printed = analyse("--runs", f"mine={run}")
    numbers = json.loads((tmp_path / "out" / "learning.json").read_text())
    (curve,) = numbers["curves"]
    assert (curve["label"], curve["tasks"]) == ("mine", [0, 2, 4])
    assert set(curve["accuracy"]) == {"id", "dev_ood"}
    assert [each["role"] for each in numbers["reached"]] == ["id", "dev_ood"]
    assert numbers["reached"][0]["level"] == pytest.approx(curve["accuracy"]["id"][-1]["mean"])
    assert "| mine, dev-OOD " in printed


def test_checkpoints_that_were_measured_are_not_measured_again(analyse, run, tmp_path, monkeypatch):
    analyse("--runs", f"mine={run}")
    before = (tmp_path / "out" / "learning.json").read_text()
    monkeypatch.setattr(ModelPredictor, "__call__", lambda *_: pytest.fail("measured again"))
    analyse("--runs", f"mine={run}")
    assert (tmp_path / "out" / "learning.json").read_text() == before


def test_the_last_checkpoint_holds_what_the_run_saved(world, run):
    def fresh(folder):
        return load_adapter(load_backbone(world / "vit"), folder)

    model, saved = fresh(run), fresh(run).state_dict()
    learned = {name for name in saved if ".smat_" in name}
    for name in learned:
        model.state_dict()[name].zero_()
    assert load_learned(model, run / "checkpoint-1") == 2
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert load_learned(model, run / "checkpoint-2") == 4
    assert all(torch.equal(model.state_dict()[name], saved[name]) for name in learned)
    assert any(not torch.equal(first[name], saved[name]) for name in learned)


def test_a_checkpoint_of_another_adapter_is_refused(adapters, world, run):
    other = load_adapter(load_backbone(world / "vit"), adapters / "one")
    with pytest.raises(CheckpointError, match="is of another model or adapter"):
        load_learned(other, run / "checkpoint-1")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "nothing to draw: name an ADAPTER, --runs or --sweep"),
        (("{adapters}/lora",), "is no SMAT adapter"),
        (("{adapters}/nowhere",), "cannot load model"),
        (("{adapters}/packed",), "is packed and has no gate logits"),
        (("{world}/vit",), "is no adapter: there is no adapter_config.json"),
        (("--runs", "a={adapters}/two", "a={adapters}/two"), "--runs must have different labels"),
        (("--runs", "a={adapters}/two"), "holds no checkpoints; train with --save_total_limit 0"),
        (("--sweep", "{adapters}/sweep.csv"), "there is no sweep"),
        (("--sweep", "{adapters}/two/adapter_config.json"), "is not a table that examples/sweep.py wrote"),
        (("{adapters}/two", "--ways", "1"), "--ways must be at least 2"),
    ],
)
def test_what_cannot_be_drawn_is_said(analyse, adapters, world, given, message):
    assert message in analyse(*(word.format(adapters=adapters, world=world) for word in given), status=2)


def test_nothing_is_drawn_where_domains_are_missing(adapters, world, tmp_path, capsys):
    assert main([str(adapters / "two"), "--output_dir", str(tmp_path / "out")]) == 2
    assert "name the domains to draw tasks from" in capsys.readouterr().err
    few = ["--shots", "1", "--id_domains", f"folder:{world}/train/green", "--output_dir", str(tmp_path / "out")]
    assert main([str(adapters / "two"), *few]) == 2
    assert "compare domains; only green has enough classes" in capsys.readouterr().err
    assert not written(tmp_path / "out")
