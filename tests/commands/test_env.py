"""`python -m smat_peft env`, and packages that are missing or too old."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from smat_peft import requirements
from smat_peft.commands.env import main
from smat_peft.version import __version__
from tests.processes import python


def test_it_prints_what_a_report_needs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["env"]) == 0
    lines = dict(line.removeprefix("- ").split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["smat_peft"].startswith(f"{__version__} in ")
    assert lines["Python"].startswith(platform.python_version())
    assert lines["torch"] == torch.__version__
    assert {"peft", "transformers", "accelerate", "safetensors", "huggingface-hub"} < lines.keys()
    assert "cpu" in lines["devices"]
    assert "HF_HUB_OFFLINE=1" in lines["variables"]


def test_it_runs_as_a_module_and_names_the_other_commands() -> None:
    ended = python("-m", "smat_peft", "--help")
    assert ended.returncode == 0, ended.stderr
    for name in ("classify", "evaluate", "analyse", "meta_tune"):
        assert f".{name}" in ended.stdout


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("0.20.0", ["peft>=0.21 is needed, 0.20.0 is installed"]),
        (None, ["peft>=0.21 is needed, none is installed"]),
        ("0.21.0", []),
        ("0.22.0.dev0", []),
        ("1.0", []),
    ],
)
def test_a_package_that_is_too_old_or_missing_is_named_and_newer_and_development_versions_will_do(
    monkeypatch: pytest.MonkeyPatch, version: str | None, told: list[str]
) -> None:
    assert requirements.unmet() == []
    own = requirements.installed
    monkeypatch.setattr(requirements, "installed", lambda name: version if name == "peft" else own(name))
    assert requirements.unmet() == told


def test_it_is_the_first_thing_that_importing_the_package_says(tmp_path: Path) -> None:
    old = tmp_path / "peft-0.20.0.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.20.0\n")
    (tmp_path / "peft.py").write_text("raise RuntimeError('this one is too old to be imported')\n")
    ended = python("-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import smat_peft")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "ImportError: peft>=0.21 is needed, 0.20.0 is installed. Mend it with: pip install --upgrade smat_peft"
    )
