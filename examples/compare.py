r"""Compare sparse experts with the methods of the field on the built-in suite, fairly, and say which claims hold.

    python examples/compare.py --quick     one seed, few updates and episodes, no search: to see it work
    python examples/compare.py             the table of docs/results: hours on two cores, in as many sittings as wanted

Each method trains the same backbone on as many episodes, by the one meta-tuner. First each searches its learning rate,
as many trials a method, scored on validation classes of the training domains and on dev-OOD domains; then, seed by
seed, each is trained and looked at on test-OOD, once. Methods of a given sparsity get that of SMAT's gates as they are
evaluated. What is done is not done again: stop it and start it as you like. What was found is kept in --results_dir;
--runs_dir may be thrown away between two seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from comparison.jobs import add_jobs, in_processes, threads_of
from comparison.measuring import Look, refuse_other_counts, take_look
from comparison.reporting import report
from comparison.rows import QUICK_ROWS, ROWS
from comparison.suite import freeze
from comparison.training import Study, train_all
from smat_peft.commands.console import HelpFormatter, run_command
from smat_peft.evaluation.predictors import BACKBONE

QUICK = {"rows": list(QUICK_ROWS), "seeds": 1, "episodes": 50, "tuned_seeds": 0}


def main(argv: Sequence[str]) -> None:
    """Search, train, look, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="by default one seed, three rows and few episodes; few updates, no search"
    )
    parser.add_argument("--seeds", type=int, default=5, help="training seeds of each row")
    parser.add_argument("--episodes", type=int, default=300, help="episodes of each domain, by prototypes")
    parser.add_argument("--tuned_seeds", type=int, default=3, help="seeds that are looked at with gradient steps, too")
    parser.add_argument("--tuned_episodes", type=int, default=20, help="episodes of each domain, with gradient steps")
    names = "; ".join(ROWS).replace("%", "%%")
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=list(ROWS),
        metavar="ROW",
        default=list(ROWS),
        help=f"only these, and their bases; all rows (default): {names}",
    )
    add_jobs(parser)
    parser.add_argument("--runs_dir", type=Path, help="where runs are left; outputs/compare, or outputs/compare-quick")
    parser.add_argument("--results_dir", type=Path, help="where records go; docs/results, or results in --runs_dir")
    parser.add_argument("--only_report", action="store_true", help="report on the records that are there")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK)
    arguments = parser.parse_args(argv)
    arguments.runs_dir = arguments.runs_dir or Path("outputs/compare-quick" if arguments.quick else "outputs/compare")
    results = arguments.results_dir or (arguments.runs_dir / "results" if arguments.quick else Path("docs/results"))
    if not arguments.only_report:
        study = Study(arguments, results)
        refuse_other_counts(results, study.episodes())
        freeze(results)
        compare(study, arguments.jobs)
    print(report(results))


def compare(study: Study, jobs: int) -> None:
    """Search, then train and look, seed by seed."""
    train_all(study.searches(), study.ledger, jobs, "search")
    take_looks(study.looks(BACKBONE, None), study.results, jobs, "looks at the backbone")
    for seed in range(study.arguments.seeds):
        train_all(study.trainings(seed), study.ledger, jobs, f"runs of seed {seed}")
        looks = [look for name in study.rows() for look in study.looks(name, seed)]
        take_looks(looks, study.results, jobs, f"looks at seed {seed}")


def take_looks(wanted: Sequence[Look], results: Path, jobs: int, title: str) -> None:
    """Take each look, so many at a time."""

    def work(look: Look) -> Callable[[], None]:
        return partial(take_look, look, results, threads_of(jobs))

    for _ in in_processes(work, wanted, jobs, title, "look"):
        pass  # its records are kept where they are read from


if __name__ == "__main__":
    raise SystemExit(run_command(main, sys.argv[1:]))
