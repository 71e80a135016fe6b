"""python -m smat_peft.evaluate: what it measures, what it leaves, what it refuses, and its name."""

import json
import shutil

import pytest
import torch
from peft import get_peft_model
from PIL import Image

from smat_peft import SMATConfig
from smat_peft.commands import evaluate as command
from smat_peft.commands import evaluate_inputs
from smat_peft.commands.evaluate import main
from smat_peft.evaluation import read_records
from smat_peft.few_shot import load_backbone
from tests.processes import python


@pytest.fixture
def run(tmp_path, capsys):
    """A function that runs the command on small episodes and says what it printed."""

    def command(*words, status=0, output=tmp_path / "out"):
        small = ["--episodes", "3", "--ways", "5", "--shots", "1", "--queries", "1", "--validation_episodes", "2"]
        assert main([*map(str, words), *small, "--output_dir", str(output)]) == status
        captured = capsys.readouterr()
        return captured.out if status == 0 else captured.err

    return command


@pytest.fixture
def domains(world):
    return ["--id_domains", f"folder:{world}/train/*", "--dev_ood_domains", f"folder:{world}/other"]


def test_an_adapter_is_measured_with_its_own_backbone(run, adapters, domains, tmp_path):
    printed = run(adapters / "two", *domains)
    assert "green" in printed
    assert "another domain's experts" in printed
    assert "backbone: log loss" in printed
    assert "expert 1" in printed
    assert "Not looked at: test classes" in printed
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"records", "report.json", "report.md", "accuracies.png"}
    report = json.loads((out / "report.json").read_text())
    figures = report["adaptations"]["prototype"]
    assert list(figures["domains"]) == ["green", "red", "other"]
    assert set(report["routing"]["domains"]) == {"green", "red", "other"}
    assert "| domain" in (out / "report.md").read_text()
    with Image.open(out / "accuracies.png") as picture:
        assert picture.width > 500
    evaluation = read_records(out / "records")
    assert set(evaluation.predictors) == {
        *("backbone", "SMAT", "fixed mean experts", "even mix", "another domain's experts"),
    }
    assert len(evaluation.records) == 5 * 3 * 3


def test_the_backbone_alone_and_an_adapter_of_another_method(run, world, adapters, domains, tmp_path):
    assert "difference" not in run("--model_name_or_path", world / "vit", *domains)
    printed = run(adapters / "lora", adapters / "two", *domains, output=tmp_path / "both")
    assert {record.predictor for record in read_records(tmp_path / "both" / "records").records} == {
        *("backbone", "lora", "two"),
    }
    assert "expert 1" not in printed


def test_by_default_test_classes_and_test_domains_are_not_looked_at(run, world, domains, monkeypatch):
    seen = {}
    evaluate = command.evaluate

    def watch(predictors, entries, **settings):
        seen.update({entry.domain.name: (entry.role, entry.split) for entry in entries})
        return evaluate(predictors, entries, **settings)

    monkeypatch.setattr(command, "evaluate", watch)
    vit = ["--model_name_or_path", world / "vit"]
    run(*vit, *domains)
    assert seen == {"green": ("id", "validation"), "red": ("id", "validation"), "other": ("dev_ood", "all")}
    printed = run(*vit, *domains, "--ood_domains", f"folder:{world}/few", output=world.parent / "looked")
    assert seen["green"] == ("id", "test")
    assert seen["few"] == ("test_ood", "all")
    assert seen["other"] == ("dev_ood", "all")
    assert "Not looked at" not in printed


@pytest.mark.parametrize(
    ("words", "roles"), [((), {"id", "dev_ood"}), (("--look_at_test",), {"id", "dev_ood", "test_ood"})]
)
def test_the_packaged_backbone_has_the_built_in_domains(words, roles):
    entries, fitted_on = evaluate_inputs.load_measured_domains(command._parser().parse_args(words), "demo-vit")
    assert {entry.role for entry in entries} == roles
    assert {entry.split for entry in entries if entry.role == "id"} == {"test" if words else "validation"}
    assert [domain.name for domain in fitted_on] == [entry.domain.name for entry in entries if entry.role == "id"]


def test_fine_tuning_says_how_its_rate_was_chosen(run, world, adapters, tmp_path):
    domain = ["--id_domains", f"folder:{world}/train/green"]
    run(adapters / "two", *domain)
    printed = run(adapters / "two", *domain, "--adaptation", "prototype", "lora", "--steps", "1")
    assert "LoRA on each support, 1 steps, learning rate chosen on validation episodes." in printed
    records = read_records(tmp_path / "out" / "records").records
    assert {(record.predictor, record.adaptation) for record in records if record.adaptation == "lora"} == {
        *(("backbone", "lora"), ("SMAT", "lora")),
    }


def test_a_second_run_measures_nothing_again_and_one_of_other_settings_is_refused(run, adapters, domains, monkeypatch):
    first = run(adapters / "two", *domains)
    monkeypatch.setattr("smat_peft.evaluation.measuring.Measurement.__call__", None)
    assert run(adapters / "two", *domains) == first
    assert "was made with other settings (seed 0, now 1)" in run(adapters / "two", *domains, "--seed", 1, status=2)


def test_the_episodes_of_a_manifest_give_the_same_table(run, adapters, domains, tmp_path):
    manifest = tmp_path / "episodes.jsonl"
    first = run(adapters / "two", *domains, "--manifest_out", manifest)
    assert len(manifest.read_text().splitlines()) == 9
    again = run(adapters / "two", *domains, "--manifest", manifest, output=tmp_path / "again")
    assert again.replace("again", "out") == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--episodes", 0], "--episodes must be at least 1"),
        (["--ways", 1], "--ways must be at least 2"),
        (["--shots", 0], "--shots must be at least 1"),
        (["--adaptation", "full", "--validation_episodes", 0], "name --id_domains or --validation_domains"),
        (["--manifest", "a", "--manifest_out", "b"], "choose one"),
        (["--manifest", "no.jsonl"], "--manifest no.jsonl: there is no such file"),
        (["no/adapter"], "'no/adapter' is no adapter: there is no adapter_config.json"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, capsys, words, message):
    assert main([*map(str, words), "--output_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_backbone_without_domains_asks_for_some(run, world):
    assert "name domains with enough" in run("--model_name_or_path", world / "vit", status=2)
    too_few = ["--id_domains", f"folder:{world}/few"]  # no training classes, so that it is a test-OOD domain
    assert "add --look_at_test" in run("--model_name_or_path", world / "vit", *too_few, status=2)


def test_a_domain_may_have_a_shape_of_its_own(run, world, tmp_path):
    domains = ["--data_root", world, "--dev_ood_domains", "folder:{data_root}/other?ways=3&shots=2&name=mine"]
    run("--model_name_or_path", world / "vit", *domains)
    (record, *_) = read_records(tmp_path / "out" / "records").records
    assert (record.domain, record.ways, record.support) == ("mine", 3, 6)


def test_adapters_of_different_backbones_are_not_compared(run, adapters, domains, make_vit, tmp_path):
    make_vit().save_pretrained(tmp_path / "other-vit")
    get_peft_model(load_backbone(tmp_path / "other-vit"), SMATConfig()).save_pretrained(tmp_path / "other")
    message = run(adapters / "two", tmp_path / "other", *domains, status=2)
    assert "different backbones" in message


def test_help_explains(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "python -m smat_peft.evaluate outputs/demo" in text
    assert "--look_at_test" in text


def test_importing_the_command_leaves_the_public_function_alone():
    program = """
import importlib, sys
import smat_peft
function = smat_peft.evaluate
import smat_peft.evaluate
assert smat_peft.evaluate is function, smat_peft.evaluate
assert importlib.import_module("smat_peft.evaluate") is function
from smat_peft import evaluate
assert evaluate is function and callable(evaluate)
from smat_peft.evaluation import evaluate
assert evaluate is function
"""
    ended = python("-c", program)
    assert ended.returncode == 0, ended.stderr


def test_the_module_is_a_command():
    ended = python("-m", "smat_peft.evaluate", "--episodes", 0)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: --episodes must be at least 1, got 0\n"


def test_what_training_shares_with_new_domains_is_said(world, domains, tmp_path, capsys):
    words = ["--episodes", "1", "--validation_episodes", "0", "--output_dir", str(tmp_path / "out"), *map(str, domains)]
    assert main(["--model_name_or_path", str(world / "vit"), *words]) == 0
    assert "Warning: other is named as not trained on, but 6 of its classes have names of" in capsys.readouterr().err


def test_no_adapter_is_lost_for_the_name_of_its_folder(world, adapters, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("SMAT", "backbone"):
        shutil.copytree(adapters / "two", tmp_path / name)
    paths = ["SMAT", "backbone", str(adapters / "lora")]
    models = evaluate_inputs.load_models(str(world / "vit"), paths, torch.device("cpu"))
    assert list(models) == ["backbone", "./SMAT", "./backbone", str(adapters / "lora")]
    assert list(evaluate_inputs.predictors_of(models, [], "prototype", 8)) == list(models)
