"""`--method`: every method that sparse experts are compared with runs in the same frame."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from smat_peft.commands.meta_tune import main, parse
from smat_peft.commands.methods import METHODS
from smat_peft.few_shot.loading import load_model
from smat_peft.tuner.adapters import has_experts, sparsity
from tests.commands.small_run import ADAPTER, metrics, words


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """Runs a method for two updates, once, and returns its folder."""
    done: dict[str, Path] = {}

    def run(method: str) -> Path:
        if method not in done:
            done[method] = tmp_path_factory.mktemp(method) / "run"
            settings: dict[str, Any] = {"method": method, "max_steps": 2, "checkpointing_steps": 0, "warmup_steps": 0}
            settings |= {"dev_ood_domains": f"folder:{world}/other", "ood_domains": None, "target_sparsity": 0.7}
            assert main(words(world, done[method], **settings)) == 0
        return done[method]

    return run


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_trains_is_measured_and_loads_again(run, world, method):
    folder = run(method)
    figures = metrics(folder)
    name = "SMAT" if method == "smat" else method
    assert {"backbone", name} <= set(figures["evaluation"]["averages"]["dev_ood"]["accuracy"])
    assert 0 <= figures["validation_accuracy"] <= 1
    assert 0 <= figures["dev_ood_accuracy"] <= 1
    model = load_model(world / "vit", folder)
    assert has_experts(model) == (method != "lora")
    assert ("A SMAT adapter" in (folder / "README.md").read_text()) == (method != "lora")


def test_hand_designed_patterns_open_as_much_as_they_were_told_to(run, world):
    dense = load_model(world / "vit", run("dense"))
    size = sum(p.numel() for name, p in dense.named_parameters() if ".smat_delta." in name)
    for method in ("random", "magnitude", "attention", "mlp", "first-layers", "last-layers"):
        model = load_model(world / "vit", run(method))
        gates = [g for name, g in model.named_parameters() if ".smat_gates." in name]
        opened = sum(int((g[0] > 0).sum()) for g in gates)
        assert opened / size == pytest.approx(0.3, abs=0.04), method


def test_what_the_method_sets_the_command_line_can_set_otherwise(world):
    dense = ["--method", "dense", "--train_domains", f"folder:{world}/train/*"]
    assert parse(dense)[0].distillation_weight == 0
    assert parse([*dense, "--distillation_weight", "0.5"])[0].distillation_weight == 0.5
    assert parse(["--train_domains", "x"])[0].distillation_weight == 0.25


def test_wise_ft_and_pruning_change_an_adapter_that_is_there_already(run, world, tmp_path):
    trained = load_file(run("dense") / ADAPTER)
    common: dict[str, Any] = {"adapter_name_or_path": run("dense"), "max_steps": 0, "ood_domains": None}
    common |= {"dev_ood_domains": f"folder:{world}/other", "evaluation_episodes": 0, "target_sparsity": 0.7}
    for method in ("wise-ft", "dense-pruned"):
        assert main(words(world, tmp_path / method, method=method, **common)) == 0
    share = json.loads((tmp_path / "wise-ft" / "metrics.json").read_text())["share_of_delta"]
    for name, tensor in load_file(tmp_path / "wise-ft" / ADAPTER).items():
        torch.testing.assert_close(tensor, trained[name] * (share if "smat_delta" in name else 1))
    pruned = load_file(tmp_path / "dense-pruned" / ADAPTER)
    deltas = torch.cat([tensor.flatten() for name, tensor in pruned.items() if "smat_delta" in name])
    assert (deltas != 0).float().mean() == pytest.approx(0.3, abs=0.01)
    assert sparsity(load_model(world / "vit", tmp_path / "wise-ft"), training=False).tolist() == [0.0]


def test_an_unknown_method_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["--method", "denser"])
    assert "wise-ft" in capsys.readouterr().err


def test_a_method_that_must_choose_says_what_by(world, tmp_path, capsys):
    settings: dict[str, Any] = {"method": "wise-ft", "max_steps": 1, "validation_episodes": 0}
    assert main(words(world, tmp_path / "run", **settings)) == 2
    assert "--method wise-ft needs --validation_episodes" in capsys.readouterr().err
