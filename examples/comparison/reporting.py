"""Tables, claims and a picture from the records that are there; all of it again each time, so that a part is enough."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn

from comparison.calibration import calibration_table
from comparison.differences import Differences, draw, to_backbone
from comparison.ledger import Ledger, best_rate, run_name, selection_score
from comparison.measuring import records_folder
from comparison.rows import CLAIMS, DENSE, REGRESSION, ROWS, SHOTS, SMAT, SMAT_EVEN, SMAT_MEAN, STEPS, TITLES, WAYS
from comparison.sooner import Sooner, reached_sooner
from smat_peft.assets import DEMO_BACKBONE
from smat_peft.episodes.builtin import KINDS
from smat_peft.evaluation.bootstrap import Interval
from smat_peft.evaluation.claims import Contrast, Judgement, RecordsByRow, judge
from smat_peft.evaluation.predictors import BACKBONE
from smat_peft.evaluation.record_files import read_records
from smat_peft.evaluation.records import ROLE_TITLES, Evaluation, Record, Role
from smat_peft.evaluation.tables import render_table
from smat_peft.few_shot.loading import load_backbone
from smat_peft.tuner.subsets import SUBSETS, share_of_parameters

ORDER = (BACKBONE, REGRESSION, *ROWS, SMAT_EVEN, SMAT_MEAN)
ABOUT = ("density", "of all experts", "rate", "minutes")

Files = Mapping[str, Sequence[Evaluation]]
"""By adaptation what each file of records holds: a row's records with one training seed."""


def report(results: Path) -> str:
    """The whole report in Markdown; also written beside the records, with its figures as JSON and a picture."""
    files = read_all(results)
    measured = by_row(files)
    ledger = Ledger(results)
    kinds = [kind for kind in SHOTS if (BACKBONE, kind) in measured]
    differences = {
        key: to_backbone(records, measured[BACKBONE, key[1]])
        for key, records in measured.items()
        if key[0] != BACKBONE and key[1] in kinds
    }
    judgements = [judge(claim, measured, KINDS["textures"]) for claim in CLAIMS]
    sooner = reached_sooner(ledger)
    parts = [claims_table(judgements, sooner)]
    for kind in kinds:
        parts += [f"### {_title(kind, measured)}", averages_table(kind, measured, differences, ledger)]
    if "prototype" in kinds:
        parts += ["### Per domain, by prototypes", domains_table(measured, differences)]
        parts += ["### Probabilities, by prototypes", calibration_table(files["prototype"], _place)]
    if any(ledger.trials(row) for row in ROWS):
        parts += ["### Learning rates that were tried", trials_table(ledger)]
    text = "\n\n".join(parts) + "\n"
    results.mkdir(parents=True, exist_ok=True)
    (results / "comparison.md").write_text(text, encoding="utf-8")
    (results / "comparison.json").write_text(json.dumps(as_json(differences, judgements), indent=1), encoding="utf-8")
    if any(kind == "prototype" for _, kind in differences):
        draw(differences, results / "comparison.png")
    return text


def read_all(results: Path) -> Files:
    """The records of every look."""
    files = {kind: sorted(records_folder(results, kind).glob("*.parquet")) for kind in SHOTS}
    return {kind: [read_records(file) for file in of_kind] for kind, of_kind in files.items()}


def by_row(files: Files) -> RecordsByRow:
    """The same by row and adaptation, over all training seeds."""
    measured: dict[tuple[str, str], list[Record]] = {}
    for kind, evaluations in files.items():
        for record in chain.from_iterable(evaluation.records for evaluation in evaluations):
            measured.setdefault((record.predictor, kind), []).append(record)
    return {key: measured[key] for key in sorted(measured, key=lambda key: (list(SHOTS).index(key[1]), _place(key[0])))}


def claims_table(judgements: Sequence[Judgement], sooner: Sooner | None) -> str:
    """A line for each claim: the verdict, the differences that it is made of, and those without domains of textures."""
    rows = [
        [
            judgement.claim.sentence,
            judgement.verdict or ("not all measured" if judgement.intervals else "not measured"),
            "; ".join(f"{c.baseline[0]} {format_interval(i)}" for c, i in judgement.intervals.items())
            + _seeds(judgement.intervals.values()),
            "; ".join(format_interval(interval) for interval in judgement.without.values()),
        ]
        for judgement in judgements
    ]
    if sooner is not None:
        by = ", ".join("never there" if gain is None else f"{gain:+d}" for gain in sooner.gains)
        of_seeds = f"in training tasks, by seed: {by}"
        rows.append([f"SMAT sooner at the level of {DENSE} on ID", sooner.verdict, of_seeds, ""])
    header = ["claim", "verdict", "SMAT minus, in points, with 95 % interval (training seeds)", "without textures"]
    return render_table(header, rows, "<" * len(header), "markdown")


def _seeds(intervals: Iterable[Interval]) -> str:
    """How many training seeds they are over."""
    counts = sorted({len(interval.per_seed) for interval in intervals})
    return f" ({' or '.join(map(str, counts))})" if counts else ""


def averages_table(kind: str, measured: RecordsByRow, differences: Differences, ledger: Ledger) -> str:
    """A line for each row: averages over the domains of a role, and their differences to the backbone."""
    header = ["", *(part for title in ROLE_TITLES.values() for part in (title, "to backbone"))]
    header += ["without textures", "seeds"]
    header += ["rate of steps"] if kind in STEPS else ABOUT
    rows = []
    for name, records in ((key[0], records) for key, records in measured.items() if key[1] == kind):
        cells, of_row = [name], differences.get((name, kind))
        for role in ROLE_TITLES:
            cells.append(f"{100 * average(records, role):.1f}")
            cells.append("" if of_row is None else format_interval(of_row.roles[role]))
        cells.append("" if of_row is None else format_interval(of_row.without_textures))
        cells.append(str(len({record.seed for record in records} - {None}) or ""))
        cells += [_rates(records)] if kind in STEPS else _about(name, ledger)
        rows.append(cells)
    return render_table(header, rows, "<" + ">" * (len(header) - 1), "markdown")


def domains_table(measured: RecordsByRow, differences: Differences) -> str:
    """Differences to the backbone on each domain, by prototypes."""
    backbone = measured[BACKBONE, "prototype"]
    domains = {record.domain: record.role for record in backbone}
    names = [name for name, kind in differences if kind == "prototype"]
    rows = [
        [
            domain,
            ROLE_TITLES[role],
            f"{100 * statistics.fmean(record.accuracy for record in backbone if record.domain == domain):.1f}",
            *(format_interval(differences[name, "prototype"].domains[domain]) for name in names),
        ]
        for domain, role in domains.items()
    ]
    return render_table(["domain", "role", BACKBONE, *names], rows, "<<" + ">" * (1 + len(names)), "markdown")


def trials_table(ledger: Ledger) -> str:
    """A line for each row whose search is done: the score of each learning rate, that of the chosen one in bold."""
    rows = []
    for row in ROWS:
        scores = {rate: selection_score(figures) for rate, figures in ledger.trials(row).items()}
        cells = {rate: f"{rate:g}: {100 * score:.1f}" for rate, score in sorted(scores.items())}
        if scores.keys() >= set(ROWS[row].rates):
            best = best_rate({rate: scores[rate] for rate in ROWS[row].rates})
            rows.append([row, ", ".join([*(cells | {best: f"**{cells[best]}**"}).values()])])
    return render_table(["", "learning rate: accuracy on validation classes and dev-OOD"], rows, "<<", "markdown")


def as_json(differences: Differences, judgements: Sequence[Judgement]) -> dict[str, Any]:
    """The same as plain data, shares from 0 to 1."""
    return {
        "differences_to_the_backbone": [
            {"row": name, "adaptation": kind, "role": role, **vars(interval)}
            for (name, kind), of_row in differences.items()
            for role, interval in of_row.roles.items()
        ],
        "claims": [
            {
                "claim": judgement.claim.sentence,
                "verdict": judgement.verdict,
                "differences": _differences(judgement.intervals),
                "without_textures": _differences(judgement.without),
            }
            for judgement in judgements
        ],
    }


def _differences(intervals: Mapping[Contrast, Interval]) -> list[dict[str, Any]]:
    return [{**contrast._asdict(), **vars(interval)} for contrast, interval in intervals.items()]


def format_interval(interval: Interval) -> str:
    """A difference in points: `+2.1 [+1.4, +2.9]`; an end just below 0 is `-0.0`."""
    mean, low, high = (f"{100 * value:+.1f}" for value in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def average(records: Iterable[Record], role: Role) -> float:
    """Mean over the domains of a role of the mean accuracy over seeds and episodes."""
    by_domain: dict[str, list[float]] = {}
    for record in records:
        if record.role == role:
            by_domain.setdefault(record.domain, []).append(record.accuracy)
    return statistics.fmean(statistics.fmean(accuracies) for accuracies in by_domain.values())


def _about(name: str, ledger: Ledger) -> list[str]:
    """Density of an expert's gates and of all together, learning rate, minutes of training."""
    runs = {seed: figures for row, seed, figures in ledger if row == name}
    if not runs:
        return [""] * len(ABOUT)
    own = list(runs.values())
    shares = [_share_adapted(name, ledger.figures(run_name(SMAT, seed))) for seed in runs]
    each = [
        share * (1 - statistics.fmean(run["sparsity"]))
        for share, run in zip(shares, own, strict=True)
        if run["sparsity"]
    ]
    together = [
        share * (1 - run["merged_sparsity"]) for share, run in zip(shares, own, strict=True) if "merged_sparsity" in run
    ]
    if "density_of_delta" in own[0]:
        each = together = [run["density_of_delta"] for run in own]
    return [
        _density(each),
        _density(together),
        ", ".join(f"{rate:g}" for rate in sorted({run["delta_lr"] for run in own})),
        f"{statistics.fmean(run['training_seconds'] for run in own) / 60:.1f}",
    ]


def _density(shares: Sequence[float]) -> str:
    if not shares:
        return ""
    mean = statistics.fmean(shares)
    return f"{mean:.2f}" if mean >= 0.01 else f"{mean:.1g}"


@cache
def _backbone() -> nn.Module:
    return load_backbone(DEMO_BACKBONE)


def _share_adapted(name: str, smat: dict[str, Any] | None) -> float:
    """How much of the backbone a row has a delta for, beside a run of SMAT that gives it its sparsity."""
    method = ROWS[name].method
    if method not in SUBSETS or smat is None:
        return 1.0
    backbone = _backbone()
    targets = SUBSETS[method](backbone, "auto", 1 - statistics.fmean(smat["sparsity"]))
    return share_of_parameters(backbone, "auto", targets)


def _rates(records: Iterable[Record]) -> str:
    """The learning rates of fine-tuning that were chosen, seed by seed."""
    chosen = {record.seed: record.learning_rate for record in records}
    return ", ".join(f"{rate:.3g}" for rate in chosen.values())


def _title(kind: str, measured: RecordsByRow) -> str:
    records = measured[BACKBONE, kind]
    count = max(record.index for record in records) + 1
    return f"By {TITLES[kind]}: {WAYS}-way {SHOTS[kind]}-shot, {count} episodes a domain"


def _place(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)
