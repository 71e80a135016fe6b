r"""Compare sparse experts with the methods of the field on the built-in suite, fairly, and say which claims hold.

    python examples/compare.py --quick     one seed, few episodes and no search: a look at it in a quarter of an hour
    python examples/compare.py             the table of docs/results: hours on two cores, in as many sittings as wanted

Each method trains the same backbone on as many episodes, by the one meta-tuner. First each searches its learning rate,
as many trials a method, scored on validation classes of the training domains and on dev-OOD domains; then each is
trained with every seed; only then is it looked at on test-OOD, once. Methods of a given sparsity get that of SMAT's
gates as they are evaluated. What is done is not done again: stop it and start it as you like.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from comparison.measuring import Look, take_look
from comparison.reporting import RUNS, report
from comparison.rows import FINE_TUNED, QUICK_ROWS, ROWS, SHOTS
from comparison.suite import freeze
from comparison.training import Study, train_all
from smat_peft.evaluation.predictors import BACKBONE


def main(argv: Sequence[str] | None = None) -> None:
    """Search, train, look, report."""
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="One seed, three rows, 50 episodes, no search of rates.")
    parser.add_argument("--seeds", type=int, default=5, help="Training seeds of each row.")
    parser.add_argument("--episodes", type=int, default=300, help="Episodes of each domain, by prototypes.")
    parser.add_argument("--tuned_seeds", type=int, default=3, help="Seeds that are looked at with gradient steps, too.")
    parser.add_argument("--tuned_episodes", type=int, default=20, help="Episodes of each domain, with gradient steps.")
    parser.add_argument(
        "--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="Only these, and their bases."
    )
    parser.add_argument("--jobs", type=int, default=cores, help="Runs at a time.")
    parser.add_argument("--runs_dir", type=Path, default=Path("outputs/compare"), help="Where runs are left.")
    parser.add_argument("--results_dir", type=Path, help="Where records go; docs/results, or results in --runs_dir.")
    parser.add_argument("--only_report", action="store_true", help="Report on the records that are there.")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.rows, arguments.seeds, arguments.episodes, arguments.tuned_seeds = list(QUICK_ROWS), 1, 50, 0
    results = arguments.results_dir or (arguments.runs_dir / "results" if arguments.quick else Path("docs/results"))
    study = Study(arguments)
    if not arguments.only_report:
        freeze(results)
        train_all(study.runs(), arguments.jobs)
        take_looks(list(looks(study)), results, arguments.jobs)
        (results / RUNS).write_text(json.dumps(study.summary(), indent=1), encoding="utf-8")
    print(report(results))


def looks(study: Study) -> Iterator[Look]:
    """All looks, the backbone's first, then seed by seed."""
    arguments = study.arguments
    tuned = [kind for kind in SHOTS if kind != "prototype"] if arguments.tuned_seeds else []
    yield Look(BACKBONE, None, None, "prototype", arguments.episodes)
    yield from (Look(BACKBONE, None, None, kind, arguments.tuned_episodes) for kind in tuned)
    for seed in range(arguments.seeds):
        for name in study.rows():
            yield Look(name, seed, study.folder(name, seed), "prototype", arguments.episodes)
    for seed in range(min(arguments.seeds, arguments.tuned_seeds)):
        for name in study.rows():
            if name in FINE_TUNED:
                yield from (
                    Look(name, seed, study.folder(name, seed), kind, arguments.tuned_episodes) for kind in tuned
                )


def take_looks(wanted: Sequence[Look], results: Path, jobs: int) -> None:
    """Take each look in a process of its own, so many at a time."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, context) as pool:
        pending = [pool.submit(take_look, look, results, threads) for look in wanted]
        with tqdm(total=len(wanted), desc="looks", unit="look") as bar:
            for done in as_completed(pending):
                bar.set_postfix_str(done.result())
                bar.update()


if __name__ == "__main__":
    main()
