"""README.md and the examples do what they say: the Python runs, the commands parse."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel

from smat_peft.commands.classify import main as classify
from smat_peft.commands.evaluate import main as evaluate
from smat_peft.commands.meta_tune import main as meta_tune
from smat_peft.meta_tuning.trainer import MetaTrainer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The words of every command in the README's shell blocks."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(command) for line in lines for command in line.split("&&") if command.strip()]


def test_the_python_of_the_readme_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in blocks("python"):  # one after the other, as a reader would
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "['class1']" in printed
    assert "trainable params" in printed
    assert isinstance(names["model"], PeftModel)
    assert names["classifier"].task_.expert_weights is not None


def test_every_python_block_is_read() -> None:
    assert len(blocks("python")) == README.count("```python")
    for block in blocks("python"):
        ast.parse(block)


def test_the_readme_s_classify_commands_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [words[3:] for words in commands() if words[:3] == ["python", "-m", "smat_peft.classify"]]
    assert len(found) == README.count("-m smat_peft.classify") > 0
    for arguments in found:
        assert classify(arguments) == 0
        answer = r"photo\.jpg +class1" if "unknown" in arguments else "leave-one-out accuracy|^Use [a-z ]+: "
        assert re.search(answer, capsys.readouterr().out, re.MULTILINE)


def test_the_readme_s_evaluate_command_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (arguments,) = [words[3:] for words in commands() if words[:3] == ["python", "-m", "smat_peft.evaluate"]]
    assert evaluate([*arguments, "--episodes", "2"]) == 0
    assert re.search(r"^other +dev-OOD ", capsys.readouterr().out, re.MULTILINE)


def test_the_readme_s_meta_tune_commands_plan_a_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(MetaTrainer, "measure_seconds", lambda _: 1.0)
    found = [words[3:] for words in commands() if words[:2] == ["accelerate", "launch"]]
    assert [words[2] for words in commands() if words[:2] == ["accelerate", "launch"]] == ["examples/meta_tune.py"] * 2
    (place / "outputs").rename(place / "adapters")
    for arguments in found:
        assert meta_tune([*arguments, "--dry_run", "--threads", "1"]) == 0
        plan = capsys.readouterr().out
        names = ("birds", "signs", "other") if arguments else ("greek", "flags")
        assert all(re.search(rf"^{name} ", plan, re.MULTILINE) for name in names)
    assert not (place / "outputs" / "mine").exists()


def test_every_command_of_the_readme_is_one_that_is_tested_or_installs() -> None:
    known = {("pip", "install"), ("accelerate", "launch"), ("python", "-m"), ("pytest",)} | {
        ("python", "examples/image_classification.py"),  # in test_examples.py
        ("python", "examples/digits.py"),
        ("python", "examples/compare.py"),  # in test_compare.py
        ("python", "examples/pack.py"),  # in test_examples.py
        ("python", "examples/convert_reference.py"),  # in sharing/test_reference_examples.py
    }
    assert {tuple(words[:2]) for words in commands()} == known


def test_the_extras_and_files_that_the_readme_names_are_there() -> None:
    extras = set(re.findall(r"\.\[(\w+)\]", README))
    declared = (ROOT / "setup.cfg").read_text(encoding="utf-8").split("[options.extras_require]")[1]
    assert extras <= set(re.findall(r"^(\w+) =$", declared, re.MULTILINE))
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert all((ROOT / link).exists() for link in links)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_answers_help(
    example: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(example), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(example), run_name="__main__")
    assert not ended.value.code
    assert "usage: " in capsys.readouterr().out
