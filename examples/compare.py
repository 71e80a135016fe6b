r"""Compare sparse experts with the methods of the field on the built-in suite, fairly, and say which claims hold.

    python examples/compare.py --quick     one seed, few episodes and no search: a look at it in a quarter of an hour
    python examples/compare.py             the table of docs/results: hours on two cores, in as many sittings as you like

Each method trains the same backbone on as many episodes, by the one meta-tuner. First each searches its learning rate,
as many trials a method, scored on validation classes of the training domains and on dev-OOD domains; then each is
trained with every seed; only then is it looked at on test-OOD, once. Methods of a given sparsity get that of SMAT's
gates as they are evaluated. What is done is not done again: stop it and start it as you like.
"""

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

import torch
from torch import Tensor, nn
from tqdm import tqdm

from smat_peft.assets import DEMO_BACKBONE, DEMO_RECIPE
from smat_peft.episodes import Episode, ImageCache, load_domain, load_image_transform
from smat_peft.episodes.builtin import ROLES
from smat_peft.episodes.cache import DEFAULT_MEBIBYTES
from smat_peft.episodes.fixed import FixedEpisodes
from smat_peft.evaluation import EvaluationDomain, Predictor, evaluate, mean_expert_weights, prototype_predictor
from smat_peft.evaluation.predictors import EVEN_MIX, FIXED_MEAN
from smat_peft.experts.router import even_weights
from smat_peft.few_shot import Adaptation
from smat_peft.few_shot.backbone import frozen_features
from smat_peft.few_shot.loading import load_model
from smat_peft.few_shot.regression import frozen_regression
from smat_peft.tuner.tasks import adapter_config

SEARCH_SEED = 100  # of the runs that rates are chosen by; none of those that are compared
RATES = (0.05, 0.2, 0.8)  # of the delta
LORA_RATES = (5e-4, 2e-3, 8e-3)  # AdamW's
METRICS = "metrics.json"
POLL_SECONDS = 1.0
COMMON = ("--evaluation_episodes=0", "--validation_episodes=20", "--save_total_limit=1")


@dataclass(frozen=True)
class Row:
    """A method as it is compared.

    Attributes:
        method: The meta-tuner's `--method`.
        words: Further arguments of it.
        rate_of: The row that its learning rate was chosen for; its own by default.
        base: The row whose adapter it changes without any training.
    """

    method: str
    words: tuple[str, ...] = ()
    rate_of: str | None = None
    base: str | None = None


SMAT, DENSE = "SMAT", "dense (PMF)"
ROWS: dict[str, Row] = {
    SMAT: Row("smat"),
    DENSE: Row("dense"),
    "dense + teachers": Row("dense-teachers"),
    "WiSE-FT": Row("wise-ft", base=DENSE),
    "dense, pruned": Row("dense-pruned", base=DENSE),
    "SMAT without teachers": Row("smat", ("--distillation_weight=0",), rate_of=SMAT),
    "SMAT, one expert": Row("smat", ("--num_experts=1",), rate_of=SMAT),
    "random experts": Row("random"),
    "soft merge": Row("soft-merge"),
    "magnitude": Row("magnitude"),
    "attention": Row("attention"),
    "MLP": Row("mlp"),
    "first layers": Row("first-layers"),
    "last layers": Row("last-layers"),
    "LayerNorm": Row("norms"),
    "biases": Row("biases"),
    "LoRA": Row("lora"),
}
HAS_ITS_OWN_SPARSITY = ("smat", "soft-merge", "dense", "dense-teachers", "wise-ft", "lora")


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

    @property
    def rows(self) -> list[str]:
        """Names of the rows that are compared."""
        return list(self.arguments.rows or ROWS)

    def runs(self) -> list[Run]:
        """All runs, in the order in which they are best done: searches, then seed by seed."""
        seeds = range(self.arguments.seeds)
        search = [] if self.arguments.quick else [run for name in self._searched() for run in self.search(name)]
        return search + [self.train(name, seed) for seed in seeds for name in self._with_bases()]

    def search(self, name: str) -> list[Run]:
        """The trials of a row's learning rate."""
        return [
            Run(
                self._search_folder(name, rate),
                lambda rate=rate: self._words(name, SEARCH_SEED, rate),
                self._sparsity_needs(name, SEARCH_SEED),
            )
            for rate in self._rates(name)
        ]

    def train(self, name: str, seed: int) -> Run:
        """The run of a row with a seed."""
        row = ROWS[name]
        needs = self._sparsity_needs(name, seed)
        if row.base is not None:
            needs.append(self.folder(row.base, seed))
        elif not self.arguments.quick:
            needs += [self._search_folder(row.rate_of or name, rate) for rate in self._rates(row.rate_of or name)]
        return Run(self.folder(name, seed), lambda: self._words(name, seed, self.rate(name)), needs)

    def folder(self, name: str, seed: int) -> Path:
        """Where a row's run with a seed is left."""
        return Path(self.arguments.runs_dir, f"seed-{seed}", _slug(name))

    def rate(self, name: str) -> float:
        """The learning rate that scored best in a row's search; its second in a quick comparison."""
        searched = ROWS[name].rate_of or ROWS[name].base or name
        rates = self._rates(searched)
        if self.arguments.quick:
            return QUICK_RATES.get(searched, rates[1])
        return max(rates, key=lambda rate: selection_score(self._search_folder(searched, rate)))

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
        closed = _figures(self._smat_folder(seed))["sparsity"]
        return float(sum(closed) / len(closed))

    def _sparsity_needs(self, name: str, seed: int) -> list[Path]:
        return [] if ROWS[name].method in HAS_ITS_OWN_SPARSITY else [self._smat_folder(seed)]

    def _smat_folder(self, seed: int) -> Path:
        return self._search_folder(SMAT, QUICK_RATES[SMAT]) if seed == SEARCH_SEED else self.folder(SMAT, seed)

    def _search_folder(self, name: str, rate: float) -> Path:
        return Path(self.arguments.runs_dir, "search", _slug(name), f"{rate:g}")

    def _rates(self, name: str) -> Sequence[float]:
        return LORA_RATES if ROWS[name].method == "lora" else RATES

    def _with_bases(self) -> list[str]:
        wanted = {SMAT, *self.rows} | {base for name in self.rows if (base := ROWS[name].base)}
        return [name for name in ROWS if name in wanted]

    def _searched(self) -> list[str]:
        wanted = {ROWS[name].rate_of or ROWS[name].base or name for name in self._with_bases()}
        return [name for name in ROWS if name in wanted]


QUICK_RATES = {SMAT: 0.2, "LoRA": 1e-3}


def selection_score(folder: Path) -> float:
    """What choices are made by: the mean of the accuracies on validation classes and on dev-OOD domains."""
    figures = _figures(folder)
    return float(figures["validation_accuracy"] + figures["dev_ood_accuracy"]) / 2


def train_all(runs: Sequence[Run], common: Sequence[str], jobs: int) -> None:
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
                process = _start(run, common, jobs)
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


def _start(run: Run, common: Sequence[str], jobs: int) -> subprocess.Popen[bytes]:
    run.folder.mkdir(parents=True, exist_ok=True)
    words = [*common, *run.words(), f"--output_dir={run.folder}"]
    if any(run.folder.glob("checkpoint-*")):
        words.append("--resume_from_checkpoint=latest")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    command = [sys.executable, "-m", "smat_peft.meta_tune", str(DEMO_RECIPE), *words, f"--threads={threads}"]
    with (run.folder / "run.log").open("ab") as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": str(threads)})


def _figures(folder: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((folder / METRICS).read_text())
    return figures


def _slug(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())


@dataclass(frozen=True)
class Look:
    """One look at the episodes that are reported: a row trained with a seed, or the backbone, by one adaptation."""

    name: str
    seed: int | None
    folder: Path | None
    shots: int
    kind: str = "prototype"


def measure(look: Look, episodes: int, records: Path) -> None:
    """Evaluate on all domains and keep the records; what was measured before is not measured again."""
    torch.set_num_threads(1)
    model = load_model(DEMO_BACKBONE, look.folder)
    transform = load_image_transform(DEMO_BACKBONE)
    cache = ImageCache(DEFAULT_MEBIBYTES)
    domains = [
        EvaluationDomain(role, load_domain(f"builtin:{name}"), "test" if role == "id" else "all")
        for role, names in ROLES.items()
        for name in names
    ]
    trained_on = [entry.domain for entry in domains if entry.role == "id"]
    shape: dict[str, Any] = {
        "ways": WAYS,
        "shots": look.shots,
        "queries": QUERIES,
        "transform": transform,
        "cache": cache,
    }
    fine_tuned = look.kind != "prototype"
    validation = FixedEpisodes(
        trained_on, "validation", TUNING_EPISODES if fine_tuned else FITTING_EPISODES, seed=1, **shape
    )
    predictors: dict[str, Any] = {look.name: prototype_predictor(model)}
    if not fine_tuned and look.folder is None:
        predictors[REGRESSION] = regression_predictor(model)
    if not fine_tuned and look.name == SMAT:
        predictors[f"{SMAT}, {EVEN_MIX}"] = prototype_predictor(
            model, even_weights(adapter_config(model).num_experts).weights
        )
        predictors[f"{SMAT}, {FIXED_MEAN}"] = prototype_predictor(model, mean_expert_weights(model, validation))
    evaluate(
        predictors,
        domains,
        episodes=episodes,
        adaptation=Adaptation(look.kind),
        rate_selection="validation" if fine_tuned else "given",
        validation=validation,
        training_seed=look.seed,
        output_dir=records,
        progress=False,
        **shape,
    )


def regression_predictor(model: nn.Module) -> Predictor:
    """Logistic regression on frozen features."""

    def predict(episode: Episode) -> Tensor:
        support, query = (frozen_features(model, images).numpy() for images in (episode.support, episode.query))
        fitted = frozen_regression().fit(support, episode.support_labels.numpy())
        return torch.from_numpy(fitted.predict_log_proba(query))

    return predict


def main(argv: Sequence[str] | None = None) -> None:
    """Search, train, evaluate, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="One seed, no search, a few rows and episodes.")
    parser.add_argument("--seeds", type=int, default=5, help="Training seeds of each row.")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), help="Only these rows, and what they need.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="Runs at a time.")
    parser.add_argument("--runs_dir", default="outputs/compare", help="Where runs are left.")
    arguments = parser.parse_args(argv)
    study = Study(arguments)
    train_all(study.runs(), COMMON, arguments.jobs)


if __name__ == "__main__":
    main()
