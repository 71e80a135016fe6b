"""The pages of docs/ do what they say: their Python runs, their commands exist, what comes from runs is up to date."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from smat_peft.assets import DEMO_BACKBONE
from smat_peft.commands.meta_tune import DEMO_NOTE
from smat_peft.sharing.model_card import write_model_card

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import write  # noqa: E402 - beside the pages that it writes

PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "results" not in path.parts and not path.is_symlink())


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT / "docs")) for page in pages]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


ELSEWHERE = {"card.md", "protocols.md"}  # the template's own; in test_recipes.py, with its files
RUN = [page for page in PAGES if blocks(page, "python") and page.name not in ELSEWHERE]


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


@pytest.mark.parametrize("page", RUN, ids=names(RUN))
def test_the_python_of_a_page_runs(place: Path, page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    defined: dict[str, Any] = {}
    for block in blocks(page, "python"):  # one after the other, as a reader would
        exec(compile(block, page.name, "exec"), defined)


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_the_commands_of_a_page_are_commands(page: Path) -> None:
    for line in "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
        for command in line.split("&&"):
            words = [word for word in shlex.split(command, comments=True) if "=" not in word or word.startswith("-")]
            if words[:2] == ["python", "-m"]:
                assert (ROOT / words[2].replace(".", "/")).with_suffix(".py").is_file(), command
            elif words[:1] in (["python"], ["bash"]) or words[:2] == ["accelerate", "launch"]:
                script = next(word for word in words if word.endswith((".py", ".sh")))
                assert (ROOT / script).is_file(), command


def test_every_page_is_in_the_navigation_and_links_lead_somewhere() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"^ +- .*: ([\w./-]+\.md)$", settings, re.MULTILINE))
    assert listed == set(names(PAGES)) | {"changelog.md", "benchmarks/README.md"}
    assert yaml.safe_load(settings)["strict"]
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page}: {link}"
