"""The runs of the comparison: one call of the meta-tuner each, several at a time, none done twice."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from comparison.jobs import in_processes, threads_of
from comparison.ledger import Ledger, best_rate, run_name, selection_score, trial_name
from comparison.measuring import Look
from comparison.rows import FINE_TUNED, HAS_ITS_OWN_SPARSITY, QUICK, QUICK_RATES, ROWS, SEARCH_SEED, SHOTS, SMAT
from comparison.runs import LOG, differences, merged, run_in
from smat_peft.assets import DEMO_RECIPE
from smat_peft.commands.results import METRICS
from smat_peft.errors import CheckpointError, ConfigurationError
from smat_peft.evaluation.predictors import BACKBONE

RECIPES = (DEMO_RECIPE, Path(__file__).with_name("settings.yaml"))


@dataclass(frozen=True)
class Run:
    """One run of the meta-tuner.

    Attributes:
        name: Of its folder, and in the ledger.
        folder: Where it is left.
        settings: Makes its settings, once it is ready.
        is_ready: Whether the runs that it is made from are done.
    """

    name: str
    folder: Path
    settings: Callable[[], dict[str, Any]]
    is_ready: Callable[[], bool]

    def __str__(self) -> str:
        return self.name


class Study:
    """Which runs and looks there are, and which of them are left.

    A run is known by the ledger and by the records of its looks: its folder is needed only until all that is made from
    it is there.

    Args:
        arguments: Of the command.
        results: Where ledger and records are kept.
    """

    def __init__(self, arguments: argparse.Namespace, results: Path) -> None:
        self.arguments, self.results = arguments, results
        self.ledger = Ledger(results, arguments.runs_dir)

    def searches(self) -> list[Run]:
        """The trials of learning rates that are left."""
        if self.arguments.quick:
            return []
        searched = [name for name in ROWS if name in {self._searched(row) for row in self.rows()}]
        trials = [(name, rate) for name in searched for rate in ROWS[name].rates]
        return [self.trial(*trial) for trial in trials if not self._is_known(trial_name(*trial), *trial)]

    def trial(self, name: str, rate: float) -> Run:
        """A trial of a row's learning rate."""
        run = trial_name(name, rate)
        return Run(
            run,
            self.arguments.runs_dir / run,
            lambda: self._settings(name, SEARCH_SEED, rate),
            lambda: self._has_sparsity(name, SEARCH_SEED),
        )

    def trainings(self, seed: int) -> list[Run]:
        """The runs with a seed that are left."""
        return [self.training(name, seed) for name in self.rows() if self._is_left(name, seed)]

    def training(self, name: str, seed: int) -> Run:
        """The run of a row with a seed."""
        base = ROWS[name].base
        return Run(
            run_name(name, seed),
            self.folder(name, seed),
            lambda: self._settings(name, seed, self.rate(name)),
            lambda: self._has_sparsity(name, seed) and (base is None or self._has_adapter(base, seed)),
        )

    def looks(self, name: str, seed: int | None) -> list[Look]:
        """The looks at a row's run, or at the backbone, which has no seed, that are left."""
        folder = None if seed is None else self.folder(name, seed)
        looks = [Look(name, seed, folder, kind, count) for kind, count in self._kinds(name, seed)]
        return [look for look in looks if not look.is_taken(self.results)]

    def episodes(self) -> dict[str, int]:
        """Episodes of each domain by adaptation, of those that there are to be looks by."""
        few = self.arguments.tuned_episodes
        kinds = {kind: self.arguments.episodes if kind == "prototype" else few for kind in SHOTS}
        return kinds if self.arguments.tuned_seeds else {"prototype": kinds["prototype"]}

    def rows(self) -> list[str]:
        """Names of the rows that are trained: those asked for, SMAT, and what they are made of."""
        rows = self.arguments.rows
        wanted = {SMAT, *rows} | {base for name in rows if (base := ROWS[name].base)}
        return [name for name in ROWS if name in wanted]

    def folder(self, name: str, seed: int) -> Path:
        """Where a row's run with a seed is left."""
        return Path(self.arguments.runs_dir, run_name(name, seed))

    def rate(self, name: str) -> float:
        """The learning rate that scored best in a row's search; its third in a quick comparison."""
        searched = self._searched(name)
        rates = ROWS[searched].rates
        if self.arguments.quick:
            return QUICK_RATES.get(searched, rates[2])
        return best_rate({rate: selection_score(self._figures(trial_name(searched, rate))) for rate in rates})

    def _kinds(self, name: str, seed: int | None) -> list[tuple[str, int]]:
        """Adaptations that a row's run is looked at by, and how many episodes of each domain."""
        tuned = name in (BACKBONE, *FINE_TUNED) and (seed or 0) < self.arguments.tuned_seeds
        return [(kind, count) for kind, count in self.episodes().items() if kind == "prototype" or tuned]

    def _is_left(self, name: str, seed: int) -> bool:
        if not self._is_known(run_name(name, seed), name):
            return True
        made_from_it = [other for other in self.rows() if ROWS[other].base == name]
        needed = bool(self.looks(name, seed)) or any(self._is_left(other, seed) for other in made_from_it)
        return needed and not self._has_adapter(name, seed)

    def _is_known(self, run: str, name: str, rate: float | None = None) -> bool:
        """Whether the ledger has a row's run, at a rate or at the one that was chosen.

        Raises:
            ConfigurationError: It has one that was made with other settings.
        """
        figures = self.ledger.figures(run)
        if figures is None:
            return False
        wanted = self._own_settings(name, self.rate(name) if rate is None else rate)
        differ = differences({key: figures.get(key, wanted[key]) for key in wanted}, wanted)
        if differ:
            raise ConfigurationError(
                f"{run} was made with {differ}. Choose another --runs_dir and --results_dir, or "
                f"throw away its folder, its records and what {self.ledger.path} has of it"
            )
        return True

    def _own_settings(self, name: str, rate: float) -> dict[str, Any]:
        """The settings of a row's runs that do not depend on other runs or on the seed."""
        row = ROWS[name]
        own = merged(RECIPES) | {"method": row.method, "delta_lr": rate, "evaluation_episodes": 0, **row.settings}
        if self.arguments.quick:
            own |= QUICK
        if row.base is not None:
            own["max_steps"] = 0
        if row.method not in HAS_ITS_OWN_SPARSITY:
            del own["target_sparsity"]
        return own

    def _settings(self, name: str, seed: int, rate: float) -> dict[str, Any]:
        row, settings = ROWS[name], self._own_settings(name, rate) | {"seed": seed}
        if row.method not in HAS_ITS_OWN_SPARSITY:
            settings["target_sparsity"] = round(statistics.fmean(self._figures(_sparsity_name(seed))["sparsity"]), 4)
        if row.base is not None:
            settings["adapter_name_or_path"] = str(self.folder(row.base, seed))
        return settings

    def _has_sparsity(self, name: str, seed: int) -> bool:
        """Whether it is known how sparse SMAT's gates are as they are evaluated, for a row that gets it from there."""
        return ROWS[name].method in HAS_ITS_OWN_SPARSITY or self.ledger.figures(_sparsity_name(seed)) is not None

    def _has_adapter(self, name: str, seed: int) -> bool:
        return (self.folder(name, seed) / METRICS).is_file()

    def _searched(self, name: str) -> str:
        """The row whose search chose a row's rate."""
        return ROWS[name].rate_of or ROWS[name].base or name

    def _figures(self, name: str) -> dict[str, Any]:
        figures = self.ledger.figures(name)
        if figures is None:
            raise CheckpointError(f"{name} is not done yet")
        return figures


def train_all(runs: Sequence[Run], ledger: Ledger, jobs: int, title: str = "runs") -> None:
    """Do all runs, so many at a time.

    Raises:
        CheckpointError: Some failed; their logs say why. The others are done.
    """

    def work(run: Run) -> Callable[[], bool] | None:
        return partial(run_in, run.folder, run.settings(), threads_of(jobs)) if run.is_ready() else None

    done = in_processes(work, runs, jobs, title, "run")
    failed = [str(run.folder / LOG) for run, ended_well in done if not ended_well or ledger.figures(run.name) is None]
    if failed:
        raise CheckpointError(f"{len(failed)} runs failed; see {', '.join(failed)}")


def _sparsity_name(seed: int) -> str:
    """The run of SMAT that gives others their sparsity."""
    return trial_name(SMAT, QUICK_RATES[SMAT]) if seed == SEARCH_SEED else run_name(SMAT, seed)
