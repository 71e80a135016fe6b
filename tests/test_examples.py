"""The examples answer --help, and run as their first lines say, here for two steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.small_models import save_demo_adapter

Run = Callable[..., tuple[int, str, str]]
EXAMPLES = sorted(path.name for path in (Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_answers_help(run_example: Run, name: str) -> None:
    status, printed, _ = run_example(name, "--help")
    assert status == 0
    assert "usage: " in printed


@pytest.mark.parametrize("method", ["smat", "lora"])
def test_image_classification_ends_with_the_accuracy_and_an_adapter(
    run_example: Run, method: str, tmp_path: Path
) -> None:
    arguments = ("--method", method, "--max_steps", 2, "--batch_size", 8, "--output_dir", tmp_path)
    status, printed, _ = run_example("image_classification.py", *arguments)
    assert status == 0
    assert "test accuracy" in printed
    assert ("share of closed gates" in printed) == (method == "smat")
    assert (tmp_path / "adapter_model.safetensors").is_file()


def test_pack_says_how_small_the_adapter_became_and_what_changed(run_example: Run, tmp_path: Path) -> None:
    save_demo_adapter(tmp_path / "mine")
    for words, last in (((), "logits differ by at most"), (("--lossless",), "task weights are the same to the bit")):
        status, printed, _ = run_example("pack.py", tmp_path / "mine", tmp_path / f"packed{len(words)}", *words)
        assert status == 0
        assert "times smaller" in printed
        assert last in printed
        assert (tmp_path / f"packed{len(words)}" / "adapter_model.safetensors").is_file()
    status, _, error = run_example("pack.py", tmp_path, tmp_path / "other")
    assert status == 2
    assert "is no adapter: there is no adapter_config.json" in error


def test_digits_ends_with_both_accuracies_and_their_difference(run_example: Run) -> None:
    status, printed, _ = run_example("digits.py", "--tasks", 2, "--ways", 3, "--shots", 2)
    assert status == 0
    lines = printed.splitlines()
    assert lines[0] == "3-way 2-shot, 2 tasks, accuracy in %"
    figures = [float(line.split()[-3]) for line in lines[1:]]
    assert figures[0] - figures[1] == pytest.approx(figures[2], abs=0.11)
    assert figures[0] > 33
