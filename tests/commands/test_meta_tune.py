"""`meta_tune`: what it leaves behind, how it goes on after an interruption, and how it runs under a launcher."""

import json
import math
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from smat_peft.commands import plan
from smat_peft.commands.classify import main as classify
from smat_peft.commands.meta_tune import main, parse
from smat_peft.episodes import folders
from smat_peft.episodes.image_files import read_image
from smat_peft.meta_tuning.lock import output_lock
from smat_peft.meta_tuning.trainer import MetaTrainer
from tests.commands.small_run import ADAPTER, IMAGES, TINY, metrics, words
from tests.episodes.h5_source import specification, write_source
from tests.faults.small_run import distance
from tests.processes import TORCHRUN, in_another_run, python

TERMS = ["query_ce", "query_kd", "router_z", "sparsity", "lagrangian"]


def printed_by(launcher: tuple[object, ...], arguments: list[str], folder: Path) -> str:
    """What the command prints, launched from an empty folder."""
    folder.mkdir()
    ended = python(*launcher, "-m", "smat_peft.meta_tune", *arguments, folder=folder)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def distance_of_adapters(ours: Path, theirs: Path) -> float:
    return distance(*(load_file(folder / ADAPTER) for folder in (ours, theirs)))


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """The output directory of a run, and what it printed."""
    output = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *texts, **_: printed.extend(map(str, texts)))
        assert main(words(world, output)) == 0
    return output, "\n".join(printed)


def test_adapter_card_figures_and_curves_lie_in_the_output_directory(trained):
    output, _ = trained
    assert {path.name for path in output.iterdir()} == {
        *(ADAPTER, "adapter_config.json", "README.md", "metrics.json", "curves.png"),
        *("best", "checkpoint-2", "checkpoint-4"),
    }
    with Image.open(output / "curves.png") as curves:
        colours = curves.convert("RGB").getcolors(1_000_000)
    assert colours is not None
    assert len(colours) > 10
    assert json.loads((output / "adapter_config.json").read_text())["num_experts"] == 2


def test_the_figures_written_are_the_figures_printed_and_those_of_the_card(trained):
    output, printed = trained
    figures = metrics(output)
    card = ModelCard.load(output / "README.md")
    assert list(figures["evaluation"]["domains"]) == ["green", "red", "other"]
    for domain, found in figures["evaluation"]["domains"].items():
        row = re.search(rf"^{domain} .*%?\d ± .*$", printed, re.MULTILINE)
        assert row is not None
        line = re.search(rf"^\| {domain} .*$", card.text, re.MULTILINE)
        assert line is not None
        for predictor in ("backbone", "SMAT"):
            estimate = found["accuracy"][predictor]
            text = f"{100 * estimate['mean']:.1f} ± {100 * estimate['half_width']:.1f}"
            assert text in row[0]
            assert text in line[0]
        assert found["accuracy"]["SMAT"]["count"] == TINY["evaluation_episodes"]
    listed = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    assert listed == {
        name: round(found["accuracy"]["SMAT"]["mean"], 4) for name, found in figures["evaluation"]["domains"].items()
    }


def test_the_settings_on_the_card_are_a_recipe_for_the_same_run(trained, tmp_path, monkeypatch, capsys):
    output, _ = trained
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((output / "README.md").read_text().split("```yaml\n")[1].split("```")[0])
    monkeypatch.chdir(tmp_path)
    assert main([str(recipe), "--output_dir", "again"]) == 0
    capsys.readouterr()
    assert (tmp_path / "again" / ADAPTER).read_bytes() == (output / ADAPTER).read_bytes()
    assert metrics(tmp_path / "again") == metrics(output)


def test_domains_of_every_kind_can_be_mixed(world, tmp_path, capsys):
    paths = sorted((world / "train" / "green").glob("*/*"))
    images = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    table = datasets.Dataset.from_dict(
        {"picture": images, "kind": [path.parent.name for path in paths]},
        datasets.Features({"picture": datasets.Image(), "kind": datasets.Value("string")}),
    )
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "columns.parquet")

    def draw(number: int, image: int) -> np.ndarray:
        return np.asarray(read_image(paths[IMAGES * number + image]))

    write_source(tmp_path / "source", specification((6, 5, 5), IMAGES, "letter"), IMAGES, draw)
    specs = [f"disk:{tmp_path}/saved?label=kind", f"parquet:{tmp_path}/columns.parquet?label=kind"]
    specs += [f"h5:{tmp_path}/source", f"folder:{world}/train/red"]
    shares = ["saved=1", "columns=1", "source=2", "red=0.5"]
    arguments = words(world, tmp_path / "run", train_domains=None, ood_domains=None)
    assert main([*arguments, "--train_domains", *specs, "--domain_weights", *shares]) == 0
    printed = capsys.readouterr().out
    for name, classes_of_splits in (("saved", "24/5/5"), ("columns", "24/5/5"), ("source", "6/5/5"), ("red", "24/5/5")):
        assert re.search(rf"{name} +ID +5 +{classes_of_splits} +4", printed)
    assert list(metrics(tmp_path / "run")["evaluation"]["domains"]) == ["saved", "columns", "source", "red"]


def test_the_image_cache_saves_reading_and_changes_nothing(trained, world, tmp_path, monkeypatch, capsys):
    reads: list[Path] = []
    read = folders.open_image
    monkeypatch.setattr(folders, "open_image", lambda path: reads.append(path) or read(path))
    monkeypatch.setattr("smat_peft.commands.protocol.shared_content", lambda *_: [])  # reads images, too
    counts = {}
    for mebibytes in (0, 1):
        assert main(words(world, tmp_path / f"{mebibytes}", dataloader_cache_mib=mebibytes)) == 0
        assert (tmp_path / f"{mebibytes}" / ADAPTER).read_bytes() == (trained[0] / ADAPTER).read_bytes()
        assert metrics(tmp_path / f"{mebibytes}")["evaluation"] == metrics(trained[0])["evaluation"]
        counts[mebibytes], reads = (len(reads), len(set(reads))), []
    capsys.readouterr()
    assert counts[0][0] > counts[0][1]  # images are drawn more than once
    assert counts[1][0] == counts[1][1] == counts[0][1]


def test_the_plan_is_printed_before_the_first_update(world, tmp_path, monkeypatch, capsys):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MetaTrainer, "update", stop)
    monkeypatch.setattr(plan, "measure_seconds", lambda _: 45.0)
    assert main(words(world, tmp_path / "run")) == 130
    printed = capsys.readouterr().out
    assert re.search(r"2 experts over 7\.\d k parameters", printed)
    assert "4 updates of 2 episodes" in printed
    assert "on 1 x cpu with 1 threads, precision no" in printed
    assert "45.00 s an update without loading images, 3 min for training" in printed
    assert re.search(r"green +ID +5 +24/5/5 +4", printed)
    assert re.search(r"other +test-OOD +6 +-/-/all +4", printed)


def test_the_plan_warns_of_what_training_shares_with_other_domains(world, tmp_path, capsys):
    for number in range(5):
        shutil.copytree(world / "train" / "red" / f"class0{number}", tmp_path / "copies" / f"kind {number}")
    assert main([*words(world, tmp_path / "run", ood_domains=f"folder:{world}/few"), "--dry_run"]) == 0
    assert "Warning: few is named as not trained on, but 5 of its classes have names of" in capsys.readouterr().out
    assert main([*words(world, tmp_path / "run", ood_domains=f"folder:{tmp_path}/copies"), "--dry_run"]) == 0
    (warning,) = re.findall("^Warning: .*", capsys.readouterr().out, re.MULTILINE)
    assert warning.startswith("Warning: copies is named as not trained on, but holds images that training has, too:")
    assert main([*words(world, tmp_path / "run", ood_domains="builtin:lao", image_size=16), "--dry_run"]) == 0
    assert "Warning" not in capsys.readouterr().out


def test_a_dry_run_prints_the_plan_and_writes_nothing(world, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert main([*words(world, tmp_path / "run"), "--dry_run"]) == 0
    plan = capsys.readouterr().out
    assert "4 updates of 2 episodes" in plan
    assert re.search(
        r"^Memory +\d+ MiB a process, .*: backbone .*, task weights .*, activations .* of \d+ images$", plan, re.M
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_needs_no_folder_of_its_own(trained, world, capsys):
    assert main([*words(world, trained[0]), "--dry_run"]) == 0
    assert "4 updates of 2 episodes" in capsys.readouterr().out


def test_the_plan_says_what_is_neither_validated_nor_tested(world, tmp_path, capsys):
    assert main([*words(world, tmp_path, evaluation_episodes=0, validation_episodes=0), "--dry_run"]) == 0
    plan = capsys.readouterr().out
    assert "There is no validation" in plan
    assert "Not tested on green, red, other" in plan


@pytest.mark.parametrize("stop_after", [1, 3])
def test_an_interrupted_run_ends_with_the_same_adapter_and_figures(trained, world, tmp_path, monkeypatch, stop_after):
    output, run = trained[0], tmp_path / "run"
    update, done = MetaTrainer.update, []

    def interrupted(self: MetaTrainer, *arguments: Any) -> None:
        if len(done) == stop_after:
            raise KeyboardInterrupt
        done.append(update(self, *arguments))

    with monkeypatch.context() as patch:
        patch.setattr(MetaTrainer, "update", interrupted)
        assert main(words(world, run, checkpointing_steps=1)) == 130
    assert main(words(world, run, checkpointing_steps=1, resume_from_checkpoint="latest")) == 0
    assert (run / ADAPTER).read_bytes() == (output / ADAPTER).read_bytes()
    resumed, undisturbed = metrics(run), metrics(output)
    assert resumed["settings"].pop("checkpointing_steps") != undisturbed["settings"].pop("checkpointing_steps")
    assert resumed == undisturbed


def test_a_run_that_is_told_to_stop_says_how_to_go_on(trained, world, tmp_path, monkeypatch, capsys):
    output, run = trained[0], tmp_path / "run"
    update = MetaTrainer.update

    def signalled(self: MetaTrainer, *arguments: Any) -> None:
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        update(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(MetaTrainer, "update", signalled)
        assert main(words(world, run)) == 75
    *_, line = capsys.readouterr().err.splitlines()
    assert line == (
        "Stopped by SIGTERM after update 3 of 4, with a checkpoint. Go on with --resume_from_checkpoint latest"
    )
    assert sorted(path.name for path in run.iterdir()) == ["best", "checkpoint-2", "checkpoint-3"]
    assert main(words(world, run, resume_from_checkpoint="latest")) == 0
    assert (run / ADAPTER).read_bytes() == (output / ADAPTER).read_bytes()
    assert metrics(run) == metrics(output)


def test_training_episodes_are_replayed_as_of_a_checkpoint(trained, world, tmp_path, capsys):
    run = Path(shutil.copytree(trained[0], tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    resumed = words(world, run, resume_from_checkpoint="latest")
    assert main([*resumed, "--replay_episodes", "2", "7"]) == 0
    titles, _, *rows = capsys.readouterr().out.splitlines()
    assert titles.split() == ["episode", "domain", "ways", "support", "query", *TERMS, "gradient", "norm"]
    assert [row.split()[0] for row in rows] == ["2", "7"]
    assert all(math.isfinite(float(number)) for row in rows for number in row.split()[2:])
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before
    assert main([*resumed, "--replay_episodes", "-1"]) == 2
    assert "--replay_episodes are numbers of episodes from 0 on, got -1" in capsys.readouterr().err


def test_a_run_in_the_folder_of_one_that_goes_on_is_refused(trained, world, tmp_path, capfd):
    run = Path(shutil.copytree(trained[0], tmp_path / "run"))
    for more in ({}, {"resume_from_checkpoint": "latest"}):
        with output_lock(run):
            assert in_another_run(lambda more=more: main(words(world, run, **more))) == 2
        assert f"error: {run} is in use by another run (process {os.getpid()} on " in capfd.readouterr().err


def test_a_run_that_is_done_can_be_resumed_to_evaluate_it_again(trained, world, tmp_path):
    run = tmp_path / "run"
    assert main(words(world, run, evaluation_episodes=0)) == 0
    assert metrics(run)["evaluation"] == {}
    assert main(words(world, run, resume_from_checkpoint="latest")) == 0
    assert metrics(run) == metrics(trained[0])


def test_the_adapter_labels_a_folder_of_images(trained, world, tmp_path, capsys):
    support, query = tmp_path / "support", tmp_path / "query"
    for number in range(3):
        (support / f"class{number:02}").mkdir(parents=True)
        (query / f"class{number:02}").mkdir(parents=True)
        for image, part in ((0, support), (1, query)):
            source = world / "other" / f"class{number:02}" / f"{image}.png"
            (part / f"class{number:02}" / "image.png").write_bytes(source.read_bytes())
    adapter = ["--model", str(world / "vit"), "--adapter", str(trained[0])]
    assert classify([str(support), str(query), *adapter]) == 0
    assert "of 3 images" in capsys.readouterr().out.splitlines()[-1]


def test_dense_meta_tuning_is_compared_with_the_backbone_alone(world, tmp_path, capsys):
    assert main(words(world, tmp_path / "run", method="dense", max_steps=1)) == 0
    assert re.search(r"domain +role +backbone +dense +difference", capsys.readouterr().out)
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert (config["num_experts"], config["sparsity_pattern"]) == (1, "dense")
    assert list(metrics(tmp_path / "run")["evaluation"]["averages"]["id"]["accuracy"]) == ["backbone", "dense"]


def test_a_later_recipe_can_leave_an_argument_at_its_default(tmp_path):
    for name, text in (
        ("first", "ood_domains: [builtin:lao]\nmax_steps: 7\nseed: 3\n"),
        ("second", "ood_domains: []\nseed: null\n"),
    ):
        (tmp_path / f"{name}.yaml").write_text(text)
    every = parse([str(tmp_path / "first.yaml"), str(tmp_path / "second.yaml")])
    assert (every.data.ood_domains, every.meta_tuning.max_steps, every.meta_tuning.seed) == ([], 7, 0)
    assert parse([str(tmp_path / "first.yaml")]).data.ood_domains == ["builtin:lao"]


def test_a_recipe_comes_first_and_the_command_line_goes_before_it(world, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    settings = TINY | {"max_steps": 7, "seed": 3, "dry_run": True, "output_dir": str(tmp_path / "run"), "ways": None}
    settings |= {"model_name_or_path": str(world / "vit"), "train_domains": [f"folder:{world / 'train' / 'red'}"]}
    recipe.write_text(yaml.safe_dump(settings | {"mixed_precision": "no"}).replace("'no'", "no"))
    assert main([str(recipe), "--seed", "5"]) == 0
    plan = capsys.readouterr().out
    assert "7 updates of 2 episodes, seed 5" in plan
    assert "green" not in plan
    assert main([str(recipe), "--train_domains", f"folder:{world / 'train' / 'green'}"]) == 0
    plan = capsys.readouterr().out
    assert "seed 3" in plan
    assert "green" in plan
    assert not re.search(r"^red ", plan, re.MULTILINE)


@pytest.mark.parametrize("spelling", ["--train_domains", "--train-domains"])
def test_the_demo_s_recipe_is_left_alone_where_domains_are_named(world, tmp_path, capsys, spelling):
    arguments = [word.replace("--train_domains", spelling) for word in words(world, tmp_path / "run")]
    assert main([*arguments, "--dry_run"]) == 0
    assert "dev-OOD" not in capsys.readouterr().out


def test_a_domain_with_too_few_training_classes_serves_as_ood_with_all_its_classes(world, tmp_path, capsys):
    train = ["--train_domains", f"folder:{world / 'train' / 'red'}", f"folder:{world / 'few'}"]
    assert main([*words(world, tmp_path / "run", train_domains=None, max_steps=1), *train]) == 0
    assert re.search(r"few +test-OOD +5 +-/-/all", capsys.readouterr().out)
    domains = metrics(tmp_path / "run")["evaluation"]["domains"]
    assert {name: found["role"] for name, found in domains.items()} == {
        "red": "id",
        "few": "test_ood",
        "other": "test_ood",
    }


def test_an_unreadable_image_can_be_left_out(make_world, tmp_path, capsys):
    world = make_world(tmp_path / "world")
    broken = world / "train" / "red" / "class00" / "0.png"
    broken.write_bytes(b"no image")
    arguments = words(world, tmp_path / "run", max_steps=1, evaluation_episodes=0)
    assert main(arguments) == 2
    assert f"{broken} cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.warns(UserWarning, match="1 images cannot be read"):
        assert main([*arguments, "--on_bad_image", "skip"]) == 0
    assert (tmp_path / "run" / "left_out.txt").read_text() == f"{broken}\n"


def test_an_image_that_breaks_off_is_one_error_when_it_is_drawn_in_another_process(make_world, tmp_path, capsys):
    world = make_world(tmp_path / "world")
    for path in (world / "train" / "red").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:-60])
    assert main(words(world, tmp_path / "run", max_steps=20, dataloader_num_workers=1)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "rror" in line]
    assert re.match(r"error: .*train/red/class.*\.png cannot be read", line)


def test_tensorboard_gets_the_figures(world, tmp_path):
    assert main(words(world, tmp_path / "run", max_steps=1, evaluation_episodes=0, report_to="tensorboard")) == 0
    events = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("events.out.tfevents*"))
    for name in (b"loss", b"accuracy", b"validation_accuracy"):
        assert name in events


def test_half_precision_runs_on_a_cpu(trained, world, tmp_path, capsys):
    assert main(words(world, tmp_path / "run", mixed_precision="bf16")) == 0
    assert "precision bf16" in capsys.readouterr().out
    assert 0 < distance_of_adapters(tmp_path / "run", trained[0]) < 1
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run" / ADAPTER).values())


def test_accelerate_launches_it_from_an_empty_folder(world, tmp_path):
    accelerate = ("-m", "accelerate.commands.launch", "--num_processes", 1)
    printed = printed_by(accelerate, words(world, Path("run"), max_steps=1), tmp_path / "empty")
    assert "on 1 x cpu" in printed
    assert printed.rstrip().endswith("Everything is in run")
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["run"]


def test_two_processes_learn_what_one_does(trained, world, tmp_path):
    printed = printed_by((*TORCHRUN, 2), words(world, Path("run")), tmp_path / "empty")
    assert "on 2 x cpu" in printed
    assert printed.count("Everything is in run") == 1
    together, alone = tmp_path / "empty" / "run", trained[0]
    assert distance_of_adapters(together, alone) < 1e-4
    steps = [[record["step"] for record in metrics(output)["log"]] for output in (together, alone)]
    assert steps[0] == steps[1]
