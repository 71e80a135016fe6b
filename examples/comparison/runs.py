"""One run of the meta-tuner in a folder of its own, with its recipe and its log."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from smat_peft.commands.meta_tune import main as meta_tune

LOG, RECIPE = "run.log", "recipe.yaml"


def merged(recipes: Sequence[Path]) -> dict[str, Any]:
    """The settings of recipes, a later one's before an earlier one's."""
    return {name: value for path in recipes for name, value in yaml.safe_load(path.read_text()).items()}


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What two settings do not have alike; nothing where they are the same."""
    names = sorted(found.keys() | wanted.keys())
    differ = [name for name in names if found.get(name) != wanted.get(name)]
    return "; ".join(f"{name} {found.get(name)}, not {wanted.get(name)}" for name in differ)


def run_in(folder: Path, settings: Mapping[str, Any], threads: int) -> bool:
    """Meta-tune with these settings, and go on with what was cut; whether it ended well, else the log says why."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / RECIPE
    recipe.write_text(yaml.safe_dump(dict(settings) | {"output_dir": str(folder), "threads": threads}))
    resume = ["--resume_from_checkpoint=latest"] if any(folder.glob("checkpoint-*")) else []
    with (folder / LOG).open("a") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            status = meta_tune([str(recipe), *resume])
        except Exception:  # of whatever kind, it belongs to this run and not to the others
            traceback.print_exc()
            return False
    if status == 0:
        for checkpoints in (*folder.glob("checkpoint-*"), folder / "best"):
            shutil.rmtree(checkpoints, ignore_errors=True)  # the adapter itself is beside them
    return status == 0
