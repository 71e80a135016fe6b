"""README and the pages of docs/ do what they say: Python and commands run, what comes from runs is up to date."""

from __future__ import annotations

import json
import re
import shlex
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from smat_peft.assets import DEMO_BACKBONE
from smat_peft.commands import plan
from smat_peft.commands.classify import main as classify
from smat_peft.commands.evaluate import main as evaluate
from smat_peft.commands.meta_tune import main as meta_tune
from smat_peft.commands.results import DEMO_NOTE
from smat_peft.sharing.model_card import write_model_card

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import write  # noqa: E402 - beside the pages that it writes

DOCS = sorted(path for path in (ROOT / "docs").rglob("*.md") if "results" not in path.parts and not path.is_symlink())
PAGES = [ROOT / "README.md", *DOCS]
ELSEWHERE = {"card.md", "protocols.md"}  # the template's own; in test_recipes.py, with its files
# Commands whose scripts have tests of their own, or that only install or build.
TESTED = {
    *(
        f"examples/{name}.py"
        for name in ("compare", "convert_reference", "digits", "image_classification", "pack", "sweep")
    ),
    *("docs/write.py", "benchmarks/size.py", "benchmarks/fits.py", "smat_peft.analyse", "smat_peft.meta_tune"),
}


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The words of every command in a page's shell blocks that runs Python."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    found = [shlex.split(command, comments=True) for line in lines for command in re.split("&&|;", line)]
    return [words[1:] for words in found if words[:1] in (["python"], ["accelerate"])]


def script(words: list[str]) -> str:
    """The script or module that a command runs."""
    return words[words.index("-m") + 1] if "-m" in words else next(word for word in words if word.endswith(".py"))


WITH_PYTHON = [page for page in PAGES if blocks(page, "python") and page.name not in ELSEWHERE]
WITH_COMMANDS = [page for page in PAGES if commands(page)]


def test_pages_written_from_runs_are_as_they_would_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert write.main(["--check"]) == 0, capsys.readouterr().out


def test_the_card_of_the_demo_is_one_that_would_be_written_today(tmp_path: Path) -> None:
    kept = (write.DEMO / write.CARD).read_text(encoding="utf-8")
    figures = json.loads((write.DEMO / write.FIGURES).read_text(encoding="utf-8"))
    table = re.search(r"^## Evaluation\n+(.*?)\n+## ", kept, re.DOTALL | re.MULTILINE)
    size = re.search(r"The adapter takes ([\d.]+) MB", kept)
    assert table
    assert size
    folder = tmp_path / re.search(r"^# (.*)$", kept, re.MULTILINE)[1]  # type: ignore[index]
    folder.mkdir()
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.truncate(round(float(size[1]) * 1e6))
    domains = figures["evaluation"]["domains"]
    written = write_model_card(
        folder,
        base_model=DEMO_BACKBONE,
        table_markdown=table[1],
        metrics={name: found["accuracy"]["SMAT"]["mean"] for name, found in domains.items()},
        origins={name: f"builtin:{name}" for name in domains},
        settings=figures["settings"],
        sparsity=figures["sparsity"],
        note=DEMO_NOTE,
    )
    assert written.read_text(encoding="utf-8") == kept


@pytest.mark.parametrize("page", WITH_PYTHON, ids=names(WITH_PYTHON))
def test_the_python_of_a_page_runs(place: Path, page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    defined: dict[str, Any] = {}
    for block in blocks(page, "python"):  # one after the other, as a reader would
        exec(compile(block, page.name, "exec"), defined)


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=names(WITH_COMMANDS))
def test_the_commands_of_a_page_run(
    place: Path, page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "measure_seconds", lambda _: 1.0)
    for words in commands(page):
        name = script(words)
        arguments = words[words.index(name) + 1 :]
        if name == "smat_peft.classify":
            assert classify(arguments) == 0
            answer = r"photo\.jpg +class1" if "unknown" in arguments else "leave-one-out accuracy|^Use [a-z ]+: "
            assert re.search(answer, capsys.readouterr().out, re.MULTILINE)
        elif name == "smat_peft.evaluate":
            assert evaluate([*arguments, "--episodes", "2"]) == 0
            assert re.search(r"^other +dev-OOD ", capsys.readouterr().out, re.MULTILINE)
        elif name in ("examples/meta_tune.py", "smat_peft.meta_tune") and words[0] == "launch":
            if "--data_root" not in arguments:  # those are in test_recipes.py, with their files
                output_dir = place / dict(pairwise(arguments)).get("--output_dir", "outputs/demo")
                output_dir.rename(place / "aside")
                assert meta_tune([*arguments, "--dry_run", "--threads", "1"]) == 0
                printed = capsys.readouterr().out
                planned = ("birds", "signs", "other") if "folder:other" in arguments else ("greek", "flags")
                assert all(re.search(rf"^{domain} ", printed, re.MULTILINE) for domain in planned)
                assert not output_dir.exists()
                (place / "aside").rename(output_dir)
        else:
            assert name in TESTED
            path = Path(name) if name.endswith(".py") else Path(name.replace(".", "/")).with_suffix(".py")
            assert (ROOT / path).is_file()


def test_every_page_is_in_the_navigation_and_links_lead_somewhere() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"^ +- .*: ([\w./-]+\.md)$", settings, re.MULTILINE))
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in DOCS} | {"changelog.md", "benchmarks/README.md"}
    assert yaml.safe_load(settings)["strict"]
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page}: {link}"
