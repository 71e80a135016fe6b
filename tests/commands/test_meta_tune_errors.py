"""Bad input to `meta_tune` is one clear error with exit status 2, before anything is written."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from smat_peft.commands.meta_tune import main


@pytest.fixture
def run(world, tmp_path):
    """A function that calls the command with further arguments."""
    usual = ["--model_name_or_path", world / "vit", "--train_domains", f"folder:{world}/train/*"]
    usual += ["--output_dir", tmp_path / "run", "--threads", 1, "--num_experts", 2]

    def call(*arguments: Any, recipe: Path | None = None) -> int:
        try:
            return main([str(word) for word in ([recipe] if recipe else []) + usual + list(arguments)])
        except SystemExit as ended:  # argparse's own
            return int(ended.code or 0)

    return call


@pytest.fixture
def failure(run, untrained, world, tmp_path, capsys):
    """A function that calls the command and returns its one error; nothing may have been trained or written."""

    def call(*arguments: Any, recipe: Path | None = None) -> str:
        before = sorted(tmp_path.rglob("*"))
        places = [str(argument).replace("WORLD", str(world)) for argument in arguments]
        capsys.readouterr()
        assert run(*places, recipe=recipe) == 2
        assert sorted(tmp_path.rglob("*")) == before
        *usage, line = capsys.readouterr().err.splitlines()
        assert not usage or usage[0].startswith("usage: ")
        return line

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train_domains", "nonsense"], "'nonsense' is no specification of a domain"),
        (["--train_domains", "zip:x"], "'zip:x' is no specification"),
        (["--train_domains", "hub:someone/unknown"], "hub:someone/unknown cannot be loaded"),
        (["--train_domains", "disk:/nowhere"], "/nowhere is not a folder"),
        (["--train_domains", "parquet:/nowhere/*"], "there is no such file"),
        (["--train_domains", "h5:/nowhere"], "/nowhere is not a folder"),
        (["--domain_weights", "half"], "--domain_weights must be uniform, size, or NAME=WEIGHT"),
        (["--domain_weights", "green=many", "red=1"], "--domain_weights must be uniform, size, or NAME=WEIGHT"),
        (["--domain_weights", "green=1"], "a number above 0 for each domain, green, red; got {'green': 1.0}"),
        (["--train_domains", "folder:"], "names nothing after the colon"),
        (["--train_domains", "builtin:nowhere"], "there is no built-in domain 'nowhere'"),
        (["--train_domains", "folder:/nowhere"], "/nowhere is not a folder"),
        (["--train_domains", "folder:/nowhere/*"], "/nowhere is not a folder"),
        (["--train_domains", "folder:WORLD/few"], "classes: few 4"),
        (["--ood_domains", "folder:WORLD/train/red"], "two domains are named 'red', from"),
        (
            ["--dev_ood_domains", "folder:WORLD/few", "--ood_domains", "folder:WORLD/few"],
            "two domains are named 'few'",
        ),
        (["--ood_domains", "folder:/nowhere"], "/nowhere is not a folder"),
        (["--model_name_or_path", "someone/unknown"], "cannot load backbone 'someone/unknown'"),
        (["--model_name_or_path", "WORLD/few"], "cannot load backbone"),
        (["--method", "prompt"], "invalid choice: 'prompt'"),
        (["--num_experts", 0], "num_experts must be at least 1"),
        (["--target_sparsity", 1], "target_sparsity must be in [0, 1)"),
        (["--gate_eval", "x"], "gate_eval must be one of"),
        (["--gate_granularity", "x"], "gate_granularity must be one of"),
        (["--router_pooling", "x"], "router_pooling must be one of"),
        (["--feature", "nowhere"], "feature='nowhere' is neither"),
        (["--image_size", 4], "cannot take images of 4 x 4"),
        (["--image_size", 0], "--image_size must be at least 1"),
        (["--ways", 1], "--ways must be at least 2"),
        (["--ways", 30], "too few for 30 ways"),
        (["--shots", 4], "too few for 4 in the support"),
        (["--queries", 0], "--queries must be at least 1"),
        (["--max_ways", 3], "max_ways must be at least 5"),
        (["--max_support", 3], "max_support must be at least 50, an image of each of max_ways classes, got 3"),
        (["--evaluation_ways", 0], "--evaluation_ways must be at least 2"),
        (["--evaluation_ways", 6, "--validation_episodes", 0], "too few for 6 ways"),
        (["--evaluation_shots", 4, "--validation_episodes", 0], "too few for 4 in the support"),
        (["--evaluation_episodes", -1], "--evaluation_episodes must be at least 0"),
        (["--validation_episodes", -1], "--validation_episodes must be at least 0"),
        (["--dataloader_cache_mib", -1], "--dataloader_cache_mib must be at least 0"),
        (["--threads", 0], "--threads must be at least 1"),
        (["--seed", -1], "--seed must be in [0, 2**32)"),
        (["--max_steps", -1], "--max_steps must be at least 0"),
        (["--max_steps", "many"], "invalid int value: 'many'"),
        (["--delta_lr", "inf"], "--delta_lr must be a finite number"),
        (["--inner_lr", "nan"], "--inner_lr must be a finite number"),
        (["--warmup_steps", -1], "--warmup_steps must be at least 0"),
        (["--lr_decay_steps", 0], "--lr_decay_steps must be at least 1"),
        (["--temperature_episodes", 0], "--temperature_episodes must be at least 1"),
        (["--save_total_limit", -1], "--save_total_limit must be at least 0"),
        (["--report_to", "paper"], "--report_to paper: there is no such tracker"),
        (["--mixed_precision", "fp8"], "invalid choice: 'fp8'"),
        (["--on_bad_image", "mend"], "invalid choice: 'mend'"),
        (["--resume_from_checkpoint", "latest"], "holds no checkpoint to resume from"),
        (["--resume_from_checkpoint", "/nowhere"], "/nowhere is not a checkpoint"),
        (["--output_dir", ""], "--output_dir must be the name of a folder"),
        (["--output_dir", "WORLD/vit/config.json"], "config.json is a file"),
        (["--output_dir", "WORLD/vit/config.json/run"], "cannot be made: Not a directory"),
        (["--nonsense", 1], "unknown arguments: --nonsense 1"),
        (["recipe.yaml"], "recipe.yaml"),
    ],
)
def test_a_wrong_argument_is_one_error(failure, arguments, message):
    assert message in failure(*arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense: 1\nfoo: 2", "holds arguments that do not exist: foo, nonsense"),
        ("1: 2", "holds arguments that do not exist: 1"),
        ("help: true", "holds arguments that do not exist: help"),
        ("seed: [1", "cannot be read as YAML"),
        ("\tseed: 1", "cannot be read as YAML"),
        ("!!python/object/apply:os.getcwd []", "cannot be read as YAML"),
        ("", "must hold arguments as `name: value`"),
        ("- seed", "must hold arguments as `name: value`"),
        ("max_steps: many", "argument --max_steps/--max-steps: invalid int value: 'many'"),
        ("max_steps: 1.5", "invalid int value: '1.5'"),
        ("max_steps: true", "invalid int value"),
        ("max_steps: {a: 1}", "a value or a list of values is wanted, got {'a': 1}"),
        ("seed: [1, 2]", "one value is wanted, got the list [1, 2]"),
        ("ood_domains: [[a]]", "a value or a list of values is wanted"),
        ("method: prompt", "invalid choice: 'prompt'"),
        ("dry_run: perhaps", "Truthy value expected"),
    ],
)
def test_a_wrong_recipe_is_one_error_that_names_the_file(failure, tmp_path, text, message):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    line = failure(recipe=recipe)
    assert str(recipe) in line
    assert message in line


def test_a_recipe_that_is_no_text_is_one_error(failure, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as YAML" in failure(recipe=recipe)


def test_a_missing_recipe_is_one_error(failure, tmp_path):
    assert "there is no recipe" in failure(recipe=tmp_path / "recipe.yaml")


def test_a_recipe_without_training_domains_is_one_error(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"output_dir: {tmp_path / 'run'}\n")
    assert main([str(recipe)]) == 2
    assert "domains and their training classes: none" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_class_with_too_few_images_is_named(failure, make_world, tmp_path):
    folder = make_world(tmp_path / "own") / "train" / "red"
    for image in sorted((folder / "class03").iterdir())[1:]:
        image.unlink()
    assert "train/red: class 'class03' has 1 usable images" in failure("--train_domains", f"folder:{folder}")


def test_test_episodes_that_could_not_be_drawn_are_noticed_before_training(failure, make_world, tmp_path):
    folder = make_world(tmp_path / "own") / "other"
    for image in sorted((folder / "class03").iterdir())[2:]:
        image.unlink()
    line = failure("--ood_domains", f"folder:{folder}", "--evaluation_shots", 2)
    assert "domain 'other': class 'class03' has 2 images" in line


def test_an_unreadable_image_is_named(failure, make_world, tmp_path):
    folder = make_world(tmp_path / "own") / "other"
    (folder / "class03" / "2.png").write_bytes(b"no image")
    assert "other/class03/2.png cannot be read" in failure("--ood_domains", f"folder:{folder}")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "checkpoint-5", "README.md", "metrics.json"])
def test_a_folder_that_holds_something_is_not_overwritten(failure, tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).touch()
    line = failure()
    assert "holds another run" in line or f"{name} would be overwritten" in line


@pytest.fixture
def trained(run, tmp_path):
    """The words that go on with a run of the method `smat` with two experts."""
    settings = ["--max_steps", 2, "--episodes_per_step", 1, "--max_ways", 5, "--max_support", 5]
    settings += ["--validation_episodes", 0, "--evaluation_episodes", 0]
    folder = tmp_path / "other"
    assert run("--output_dir", folder, *settings) == 0
    return ["--output_dir", folder, "--resume_from_checkpoint", "latest", *settings]


def test_a_checkpoint_of_another_method_is_one_error(trained, failure):
    assert "is of another run: adapter: default.num_experts was 2, is 1" in failure(
        *trained, "--method", "dense-teachers"
    )
    assert "is of another run: adapter: default.num_experts was 2, is 3" in failure(*trained, "--num_experts", 3)
    assert "is of another model or adapter" in failure(*trained, "--num_experts", 3, "--resume_anyway")


def test_half_precision_where_there_is_none_is_one_error(failure, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("fp16 mixed precision requires a device")

    monkeypatch.setattr(Accelerator, "__init__", refuse)
    assert "--mixed_precision fp16: fp16 mixed precision requires" in failure("--mixed_precision", "fp16")


def test_a_folder_that_cannot_be_written_to_is_noticed_before_training(failure, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "run cannot be written to" in failure()
    shutil.rmtree(tmp_path / "run")
