r"""How sparse should experts be, and how many? The settings of the comparison over a grid of both.

Why: too dense, and experts forget what the backbone knew of other domains; too sparse, and they cannot learn. Each run
of the meta-tuner has the recipe's other settings and is looked at on validation classes of the training domains (ID)
and on dev-OOD domains, never on what is kept for a final test. Dense gates want a lower learning rate than sparse ones,
so each cell tries the same few and keeps the one that is best on validation. What the table of results holds is not
done again: stop it and start it as you like, also where runs are no more. The settings that all cells share are kept
beside the table; cells with others want a table of their own.

    python examples/sweep.py --quick     four cells of a few updates, to see it work
    python examples/sweep.py             24 cells, two rates each: hours on two cores
    python examples/sweep.py --status    what is left and, by the runs that are done, about how long it takes

The table of results is for the picture:

    python -m smat_peft.analyse --sweep docs/results/sweep.csv --output_dir docs/pictures
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from comparison.jobs import add_jobs, in_processes, threads_of
from comparison.ledger import selection_score
from comparison.runs import LOG, RECIPE, differences, merged, run_in
from comparison.training import RECIPES
from smat_peft.commands.console import HelpFormatter, run_command
from smat_peft.commands.results import METRICS
from smat_peft.errors import CheckpointError, ConfigurationError
from smat_peft.evaluation.analysis.sweep import SweepCell, read_sweep, write_sweep
from smat_peft.evaluation.predictors import SMAT

SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
EXPERTS = (4, 8, 1, 16)
SWEEP_RECIPE = Path(__file__).with_name("comparison") / "sweep.yaml"
RATES = (0.2, 0.05)  # at 0.2 one expert without closed gates diverges, at 0.05 sparse ones are slow
QUICK: dict[str, Any] = {"max_steps": 10, "validation_steps": 10, "checkpointing_steps": 5, "evaluation_episodes": 10}
SETTINGS = ("target_sparsity", "num_experts", "delta_lr", "seed")
OF_A_RUN = {*SETTINGS, "output_dir", "threads"}  # what cells need not share

settings_of = attrgetter(*SETTINGS)  # of a cell or of its result
Results = dict[tuple[float, ...], SweepCell]


@dataclass(frozen=True)
class Cell:
    """One run: its settings, which stand before the recipe's, and its folder."""

    target_sparsity: float
    num_experts: int
    delta_lr: float
    seed: int
    runs_dir: Path

    @property
    def settings(self) -> dict[str, Any]:
        return dict(zip(SETTINGS, settings_of(self), strict=True))

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in self.settings.items())

    @property
    def folder(self) -> Path:
        return self.runs_dir / "_".join(f"{name}-{value:g}" for name, value in self.settings.items())

    @property
    def is_trained(self) -> bool:
        return (self.folder / METRICS).is_file()

    def result(self) -> SweepCell:
        """What the run wrote down."""
        figures = json.loads((self.folder / METRICS).read_text())
        averages = {role: each["accuracy"][SMAT] for role, each in figures["evaluation"]["averages"].items()}
        return SweepCell(
            **self.settings,
            validation_score=selection_score(figures),
            id_accuracy=averages["id"]["mean"],
            id_half_width=averages["id"]["half_width"],
            dev_ood_accuracy=averages["dev_ood"]["mean"],
            dev_ood_half_width=averages["dev_ood"]["half_width"],
            sparsity=fmean(figures["sparsity"]),
            merged_sparsity=figures["merged_sparsity"],
            training_seconds=figures["training_seconds"],
        )


def main(argv: Sequence[str]) -> None:
    """Run what is left, keep the table, say what is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--recipes", type=Path, nargs="+", help="settings of all cells, the last one first; the comparison's by default"
    )
    parser.add_argument("--sparsities", type=float, nargs="+", default=list(SPARSITIES), help="of each expert")
    parser.add_argument("--experts", type=int, nargs="+", default=list(EXPERTS), help="numbers of experts")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="learning rates of delta to try")
    parser.add_argument("--seeds", type=int, default=1, help="training seeds of each cell")
    parser.add_argument("--evaluation_episodes", type=int, default=100, help="episodes of each domain")
    add_jobs(parser)
    parser.add_argument("--quick", action="store_true", help="two sparsities, two numbers of experts, ten updates")
    parser.add_argument("--status", action="store_true", help="say what is left, and do nothing")
    parser.add_argument("--runs_dir", type=Path, help="where runs are left; outputs/sweep, or outputs/sweep-quick")
    parser.add_argument("--results", type=Path, help="the table; docs/results/sweep.csv, or sweep.csv in --runs_dir")
    arguments = parser.parse_args(argv)
    if arguments.evaluation_episodes < 2:
        parser.error("--evaluation_episodes must be at least 2: one has no interval")
    settings = merged(arguments.recipes or [*RECIPES, SWEEP_RECIPE]) | {
        "evaluation_episodes": arguments.evaluation_episodes,
        "ood_domains": [],
    }
    settings = {name: value for name, value in settings.items() if name not in OF_A_RUN}
    if arguments.quick:
        arguments.sparsities, arguments.experts, arguments.rates = [0.0, 0.9], [1, 4], [0.05]
        settings |= QUICK
    runs_dir = arguments.runs_dir or Path("outputs/sweep-quick" if arguments.quick else "outputs/sweep")
    table = arguments.results or (runs_dir / "sweep.csv" if arguments.quick else Path("docs/results/sweep.csv"))
    grid = product(range(arguments.seeds), arguments.experts, arguments.rates, arguments.sparsities)
    cells = [Cell(sparsity, experts, rate, seed, runs_dir) for seed, experts, rate, sparsity in grid]
    check_settings(settings, [table.with_suffix(".yaml"), *(cell.folder / RECIPE for cell in cells)])
    results = results_of(cells, table)

    print(describe(cells, results, arguments.jobs))
    if not arguments.status:
        run_all(cells, results, settings, arguments.jobs, table)
        print(f"{describe(cells, results, arguments.jobs)}\nThe table is {table}")


def check_settings(settings: dict[str, Any], recipes: Sequence[Path]) -> None:
    """Check that what is there already, by its recipes, was made with the settings that all cells share.

    Raises:
        ConfigurationError: A recipe differs in a setting.
    """
    for path in recipes:
        found = yaml.safe_load(path.read_text()) if path.is_file() else settings
        differ = differences({name: value for name, value in found.items() if name not in OF_A_RUN}, settings)
        if differ:
            raise ConfigurationError(f"{path} has {differ}. Give --results and --runs_dir of their own")


def results_of(cells: Sequence[Cell], table: Path) -> Results:
    """All that the table has, and what these cells' runs found."""
    results = {settings_of(result): result for result in (read_sweep(table) if table.is_file() else ())}
    new = [cell for cell in cells if settings_of(cell) not in results and cell.is_trained]
    return results | {settings_of(cell): cell.result() for cell in new}


def run_all(cells: Sequence[Cell], results: Results, settings: dict[str, Any], jobs: int, table: Path) -> None:
    """Run each cell without a result, so many at a time; results and table grow with each.

    Raises:
        CheckpointError: A run failed; the others are finished first.
    """

    def work(cell: Cell) -> Callable[[], bool]:
        return partial(run_in, cell.folder, settings | cell.settings, threads_of(jobs))

    table.parent.mkdir(parents=True, exist_ok=True)
    table.with_suffix(".yaml").write_text(yaml.safe_dump(settings))
    if results:
        write_sweep(results.values(), table)
    left, failed = [cell for cell in cells if settings_of(cell) not in results], []
    for cell, ended_well in in_processes(work, left, jobs, "sweep", "run"):
        if ended_well:
            results[settings_of(cell)] = cell.result()
            write_sweep(results.values(), table)
        else:
            failed.append(str(cell.folder / LOG))
    if failed:
        raise CheckpointError(f"{len(failed)} runs failed; see {', '.join(failed)}")


def describe(cells: Sequence[Cell], results: Results, jobs: int) -> str:
    """What is done and what is left, and about how long that takes by the runs that are done."""
    left = [cell for cell in cells if settings_of(cell) not in results]
    lines = [f"{len(cells) - len(left)} of {len(cells)} runs are done, {len(left)} left"]
    if left and results:
        hours = fmean(result.training_seconds for result in results.values()) * len(left) / jobs / 3600
        lines[0] += f": about {hours:.1f} h of training, {jobs} at a time"
    for cell in left:
        begun = ", begun" if any(cell.folder.glob("checkpoint-*")) else ""
        lines.append(f"  {cell}{begun}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(run_command(main, sys.argv[1:]))
