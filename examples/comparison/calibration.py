"""How far each row's probabilities can be trusted: log loss and calibration error, without and with a temperature."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import astuple

from smat_peft.evaluation.records import ROLE_TITLES, BeforeAfter, Evaluation
from smat_peft.evaluation.tables import render_table


def calibration_table(evaluations: Iterable[Evaluation], place: Callable[[str], int]) -> str:
    """A line for each row: means over the domains of a role and over training seeds, as they are → with a temperature.

    Args:
        evaluations: By one adaptation, each of one row and training seed: calibration errors are over all queries of a
            domain and seed.
        place: Where a row stands.
    """
    rows: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        rows.setdefault(evaluation.predictors[0], []).append(evaluation)
    lines = []
    for name in sorted(rows, key=place):
        cells = [name]
        for role in ROLE_TITLES:
            measured = [(each, domain) for each in rows[name] for domain in each.domains_of(role)]
            cells.append(_means([each.log_loss(name, domain) for each, domain in measured], 1, 3))
            cells.append(_means([each.calibration_error(name, domain) for each, domain in measured], 100, 1))
        lines.append(cells)
    header = ["", *(f"{title} {what}" for title in ROLE_TITLES.values() for what in ("log loss", "error %"))]
    return render_table(header, lines, "<" + ">" * (len(header) - 1), "markdown")


def _means(pairs: list[BeforeAfter], factor: float, digits: int) -> str:
    before, after = (factor * statistics.fmean(part) for part in zip(*map(astuple, pairs), strict=True))
    return f"{before:.{digits}f} → {after:.{digits}f}"
