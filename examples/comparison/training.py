"""The runs of the comparison: one call of the meta-tuner each, several at a time, none done twice."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from comparison.rows import HAS_ITS_OWN_SPARSITY, QUICK_RATES, ROWS, SEARCH_SEED, SMAT
from smat_peft.assets import DEMO_RECIPE

METRICS = "metrics.json"
POLL_SECONDS = 1.0
SUMMARISED = (
    *("sparsity", "merged_sparsity", "density_of_delta", "share_of_delta", "skipped_updates", "training_seconds"),
    *("validation_accuracy", "dev_ood_accuracy"),
)
RECIPES = (DEMO_RECIPE, Path(__file__).with_name("settings.yaml"))  # the second before the first


@dataclass
class Run:
    """One run of the meta-tuner.

    Attributes:
        folder: Where it is left; done once its figures are there.
        words: Makes its arguments, once the runs that it needs are done.
        needs: Folders of those.
    """

    folder: Path
    words: Callable[[], list[str]]
    needs: list[Path] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Whether its figures are there."""
        return (self.folder / METRICS).is_file()

    @property
    def is_ready(self) -> bool:
        """Whether it can be started."""
        return not self.is_done and all((folder / METRICS).is_file() for folder in self.needs)


@dataclass(frozen=True)
class Study:
    """Which runs there are, and what is known of them so far."""

    arguments: argparse.Namespace

    def runs(self) -> list[Run]:
        """All runs, in the order in which they are best done: searches, then seed by seed."""
        seeds = range(self.arguments.seeds)
        search = [] if self.arguments.quick else [run for name in self._searched() for run in self.search(name)]
        return search + [self.train(name, seed) for seed in seeds for name in self.rows()]

    def search(self, name: str) -> list[Run]:
        """The trials of a row's learning rate."""
        return [
            Run(
                self._search_folder(name, rate),
                lambda rate=rate: self._words(name, SEARCH_SEED, rate),
                self._sparsity_needs(name, SEARCH_SEED),
            )
            for rate in ROWS[name].rates
        ]

    def train(self, name: str, seed: int) -> Run:
        """The run of a row with a seed."""
        row = ROWS[name]
        needs = self._sparsity_needs(name, seed)
        if row.base is not None:
            needs.append(self.folder(row.base, seed))
        elif not self.arguments.quick:
            needs += [self._search_folder(row.rate_of or name, rate) for rate in ROWS[row.rate_of or name].rates]
        return Run(self.folder(name, seed), lambda: self._words(name, seed, self.rate(name)), needs)

    def folder(self, name: str, seed: int) -> Path:
        """Where a row's run with a seed is left."""
        return Path(self.arguments.runs_dir, f"seed-{seed}", _slug(name))

    def rate(self, name: str) -> float:
        """The learning rate that scored best in a row's search; its second in a quick comparison."""
        searched = ROWS[name].rate_of or ROWS[name].base or name
        rates = ROWS[searched].rates
        if self.arguments.quick:
            return QUICK_RATES.get(searched, rates[1])
        return max(rates, key=lambda rate: selection_score(self._search_folder(searched, rate)))

    def summary(self) -> dict[str, Any]:
        """What is to be known of the runs that are done: `{"search": {row: {rate: score}}, "runs": [...]}`."""
        searched = {
            name: {f"{rate:g}": selection_score(folder) for rate, folder in trials if (folder / METRICS).is_file()}
            for name in ROWS
            if (trials := [(rate, self._search_folder(name, rate)) for rate in ROWS[name].rates])
        }
        runs = [
            {"row": name, "seed": seed}
            | {key: figures[key] for key in SUMMARISED if key in figures}
            | {"delta_lr": figures["settings"]["delta_lr"], "curve": learning_curve(figures)}
            for seed in range(self.arguments.seeds)
            for name in ROWS
            if (self.folder(name, seed) / METRICS).is_file() and (figures := figures_of(self.folder(name, seed)))
        ]
        return {"search": {name: scores for name, scores in searched.items() if scores}, "runs": runs}

    def _words(self, name: str, seed: int, rate: float) -> list[str]:
        row = ROWS[name]
        words = [f"--method={row.method}", f"--seed={seed}", f"--delta_lr={rate:g}", *row.words]
        if row.method not in HAS_ITS_OWN_SPARSITY:
            words.append(f"--target_sparsity={self._sparsity(seed):.4f}")
        if row.base is not None:
            words += [f"--adapter_name_or_path={self.folder(row.base, seed)}", "--max_steps=0"]
        return words

    def _sparsity(self, seed: int) -> float:
        """SMAT's, of its gates as they are evaluated."""
        closed = figures_of(self._smat_folder(seed))["sparsity"]
        return float(sum(closed) / len(closed))

    def _sparsity_needs(self, name: str, seed: int) -> list[Path]:
        return [] if ROWS[name].method in HAS_ITS_OWN_SPARSITY else [self._smat_folder(seed)]

    def _smat_folder(self, seed: int) -> Path:
        return self._search_folder(SMAT, QUICK_RATES[SMAT]) if seed == SEARCH_SEED else self.folder(SMAT, seed)

    def _search_folder(self, name: str, rate: float) -> Path:
        return Path(self.arguments.runs_dir, "search", _slug(name), f"{rate:g}")

    def rows(self) -> list[str]:
        """Names of the rows that are trained: those asked for, SMAT, and what they are made of."""
        rows = self.arguments.rows
        wanted = {SMAT, *rows} | {base for name in rows if (base := ROWS[name].base)}
        return [name for name in ROWS if name in wanted]

    def _searched(self) -> list[str]:
        wanted = {ROWS[name].rate_of or ROWS[name].base or name for name in self.rows()}
        return [name for name in ROWS if name in wanted]


def selection_score(folder: Path) -> float:
    """What choices are made by: the mean of the accuracies on validation classes and on dev-OOD domains."""
    figures = figures_of(folder)
    return float(figures["validation_accuracy"] + figures["dev_ood_accuracy"]) / 2


def train_all(runs: Sequence[Run], jobs: int) -> None:
    """Do every run that is not done yet, so many at a time.

    Raises:
        SystemExit: A run failed; its log says why.
    """
    left = [run for run in runs if not run.is_done]
    running: dict[int, tuple[Run, subprocess.Popen[bytes]]] = {}
    with tqdm(total=len(runs), initial=len(runs) - len(left), desc="runs", unit="run") as bar:
        while left or running:
            for run in [run for run in left if run.is_ready][: jobs - len(running)]:
                left.remove(run)
                process = _start(run, jobs)
                running[process.pid] = (run, process)
                bar.set_postfix_str(", ".join(str(run.folder) for run, _ in running.values())[-60:])
            time.sleep(POLL_SECONDS)
            for pid, (run, process) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[pid]
                if process.returncode == 0:
                    for folder in (*run.folder.glob("checkpoint-*"), run.folder / "best"):
                        shutil.rmtree(folder, ignore_errors=True)  # the adapter itself is beside them
                else:
                    for _, other in running.values():
                        other.terminate()
                    raise SystemExit(f"error: {run.folder} failed; see {run.folder / 'run.log'}")
                bar.update()


def _start(run: Run, jobs: int) -> subprocess.Popen[bytes]:
    run.folder.mkdir(parents=True, exist_ok=True)
    words = [*run.words(), "--evaluation_episodes=0", f"--output_dir={run.folder}"]
    if any(run.folder.glob("checkpoint-*")):
        words.append("--resume_from_checkpoint=latest")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    command = [sys.executable, "-m", "smat_peft.meta_tune", *map(str, RECIPES), *words, f"--threads={threads}"]
    with (run.folder / "run.log").open("ab") as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": str(threads)})


def figures_of(folder: Path) -> dict[str, Any]:
    """What a run wrote down."""
    figures: dict[str, Any] = json.loads((folder / METRICS).read_text())
    return figures


def learning_curve(figures: dict[str, Any]) -> list[tuple[int, float]]:
    """Training tasks seen, and the accuracy on validation classes of the training domains after them."""
    tasks = figures["settings"]["episodes_per_step"]
    logged = [entry for entry in figures["log"] if "validation_accuracy" in entry]
    return [(tasks * entry["step"], entry["validation_accuracy"]) for entry in logged]


def _slug(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())
