"""The examples run as their first lines say, here for two steps."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from peft import get_peft_model

from smat_peft import SMATConfig
from smat_peft.assets import DEMO_BACKBONE
from smat_peft.few_shot import load_backbone

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("method", ["smat", "lora"])
def test_image_classification_ends_with_the_accuracy_and_an_adapter(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--method", method, "--max_steps", "2", "--batch_size", "8", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["image_classification.py", *arguments])
    runpy.run_path(str(EXAMPLES / "image_classification.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "test accuracy" in printed
    assert ("share of closed gates" in printed) == (method == "smat")
    assert (tmp_path / "adapter_model.safetensors").is_file()


def test_pack_says_how_small_the_adapter_became_and_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = get_peft_model(load_backbone(DEMO_BACKBONE), SMATConfig(num_experts=2, init_weights=False))
    for name, parameter in adapter.named_parameters():
        if ".smat_delta." in name:
            parameter.data.mul_(0.1)  # as small as training leaves it
    adapter.peft_config["default"].base_model_name_or_path = DEMO_BACKBONE
    adapter.save_pretrained(tmp_path / "mine", save_embedding_layers=False)
    for words, last in (((), "logits differ by at most"), (("--lossless",), "task weights are the same to the bit")):
        places = [str(tmp_path / "mine"), str(tmp_path / f"packed{len(words)}")]
        monkeypatch.setattr(sys, "argv", ["pack.py", *places, *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / "pack.py"), run_name="__main__")
        assert ended.value.code == 0
        printed = capsys.readouterr().out
        assert "times smaller" in printed
        assert last in printed
        assert (tmp_path / f"packed{len(words)}" / "adapter_model.safetensors").is_file()
    monkeypatch.setattr(sys, "argv", ["pack.py", str(tmp_path), str(tmp_path / "other")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / "pack.py"), run_name="__main__")
    assert ended.value.code == 2
    assert "is no adapter: there is no adapter_config.json" in capsys.readouterr().err


def test_digits_ends_with_both_accuracies_and_their_difference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["digits.py", "--tasks", "2", "--ways", "3", "--shots", "2"])
    runpy.run_path(str(EXAMPLES / "digits.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3-way 2-shot, 2 tasks, accuracy in %"
    figures = [float(line.split()[-3]) for line in lines[1:]]
    assert figures[0] - figures[1] == pytest.approx(figures[2], abs=0.11)
    assert figures[0] > 33
