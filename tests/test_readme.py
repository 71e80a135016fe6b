"""What README.md alone promises; its Python and its commands are run in test_pages.py. Every example answers --help."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_the_extras_and_files_that_the_readme_names_are_there() -> None:
    extras = set(re.findall(r"\.\[(\w+)\]", README))
    declared = (ROOT / "setup.cfg").read_text(encoding="utf-8").split("[options.extras_require]")[1]
    assert extras <= set(re.findall(r"^(\w+) =$", declared, re.MULTILINE))
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", README)
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
