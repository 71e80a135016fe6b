"""What is known of the runs that are done: kept beside the records, so that the runs themselves may be thrown away."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from comparison.rows import QUICK, ROWS
from smat_peft.commands.results import METRICS
from smat_peft.files import write_text

LEDGER = "runs.json"
SEED, SEARCHES = "seed-", "search"
KEPT = (
    *("sparsity", "merged_sparsity", "density_of_delta", "share_of_delta", "skipped_updates", "training_seconds"),
    *("validation_accuracy", "dev_ood_accuracy"),
)
SETTINGS = ("method", "delta_lr", *sorted({*QUICK, *chain.from_iterable(row.settings for row in ROWS.values())}))


def run_name(row: str, seed: int) -> str:
    """The name of a row's run with a seed."""
    return f"{SEED}{seed}/{_slug(row)}"


def trial_name(row: str, rate: float) -> str:
    """The name of a trial of a row's learning rate."""
    return f"{_trials(row)}{rate:g}"


def selection_score(figures: dict[str, Any]) -> float:
    """What choices are made by: the mean of the accuracies on validation classes and on dev-OOD domains."""
    return float(figures["validation_accuracy"] + figures["dev_ood_accuracy"]) / 2


def best_rate(scores: Mapping[float, float]) -> float:
    """The learning rate that is chosen by the scores of all: the smallest of equals."""
    return max(scores, key=lambda rate: scores[rate])


class Ledger:
    """Figures of each run by its name, such as `seed-0/smat`.

    Args:
        results: The folder of the records.
        runs_dir: The folder of the runs; one that is done and not known yet is written down when it is asked for.
    """

    def __init__(self, results: Path, runs_dir: Path = Path()) -> None:
        self.path, self.runs_dir = results / LEDGER, runs_dir
        self.runs: dict[str, dict[str, Any]] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def __iter__(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Row, seed and figures of the runs that are compared."""
        rows = {_slug(row): row for row in ROWS}
        for name, figures in self.runs.items():
            folder, _, slug = name.partition("/")
            if folder != SEARCHES and slug in rows:
                yield rows[slug], int(folder.removeprefix(SEED)), figures

    def trials(self, row: str) -> dict[float, dict[str, Any]]:
        """Figures of the trials of a row's learning rate, those among them that are no longer made."""
        folder = _trials(row)
        return {float(name.removeprefix(folder)): run for name, run in self.runs.items() if name.startswith(folder)}

    def figures(self, name: str) -> dict[str, Any] | None:
        """What a run wrote down, as far as it is kept; None for one that is not done."""
        metrics = self.runs_dir / name / METRICS
        if name not in self.runs and metrics.is_file():
            self.runs[name] = _kept(json.loads(metrics.read_text()))
            write_text(self.path, json.dumps(dict(sorted(self.runs.items())), indent=1))
        return self.runs.get(name)


def _kept(figures: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run's figures, and its curve: training tasks seen, and accuracy on validation classes."""
    settings = figures["settings"]
    logged = [entry for entry in figures["log"] if "validation_accuracy" in entry]
    curve = [(settings["episodes_per_step"] * entry["step"], entry["validation_accuracy"]) for entry in logged]
    kept = {key: figures[key] for key in KEPT if key in figures}
    return kept | {key: settings[key] for key in SETTINGS if key in settings} | {"curve": curve}


def _trials(row: str) -> str:
    return f"{SEARCHES}/{_slug(row)}/"


def _slug(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())
