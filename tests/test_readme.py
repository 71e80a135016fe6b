"""What README.md alone promises; its Python and its commands are run in test_pages.py."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_extras_and_files_that_the_readme_names_are_there() -> None:
    extras = set(re.findall(r"\.\[(\w+)\]", README))
    declared = (ROOT / "setup.cfg").read_text(encoding="utf-8").split("[options.extras_require]")[1]
    assert extras <= set(re.findall(r"^(\w+) =$", declared, re.MULTILINE))
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", README)
    assert links
    assert all((ROOT / link).exists() for link in links)
