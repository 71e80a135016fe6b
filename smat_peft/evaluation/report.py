"""An evaluation as text, for GitHub or a terminal, and as plain data for a JSON file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from smat_peft.evaluation.records import ROLE_TITLES, Evaluation, Role
from smat_peft.evaluation.statistics import Estimate
from smat_peft.evaluation.tables import TableStyle, render_table

_Measure = Callable[[str], Estimate]  # of a predictor, by its name


def format_report(evaluation: Evaluation, style: TableStyle = "text") -> str:
    """Tables of an evaluation whose first predictor is the baseline and whose second is the method.

    First domains x {baseline, method} with 95 % intervals, their paired difference, and the averages by role; then, if
    there are further predictors, their averages by role.
    """
    baseline, *others = evaluation.predictors
    method, further = others[:1], others[1:]
    rows = [
        [domain, ROLE_TITLES[role], format_percent(accuracy(baseline)), *_cells(method, accuracy, difference)]
        for domain, role, accuracy, difference in _by_domain(evaluation)
    ]
    rows += [
        ["average", ROLE_TITLES[role], format_percent(accuracy(baseline)), *_cells(method, accuracy, difference)]
        for role, accuracy, difference in _by_role(evaluation)
    ]
    parts = [_render(["domain", "role"], [baseline, *_titles(method)], rows, style)]
    if further:
        rows = [
            [ROLE_TITLES[role], *_cells(further, accuracy, difference)]
            for role, accuracy, difference in _by_role(evaluation)
        ]
        parts.append(_render(["average"], _titles(further), rows, style))
    counts = sorted({evaluation.accuracy(baseline, domain).count for domain in evaluation.domains})
    legend = f"Query accuracy in %, mean ± half the 95 % interval; {' to '.join(map(str, counts))} episodes a domain."
    if others:
        legend += f" Difference: to {baseline} on the same episodes."
    return "\n\n".join([*parts, " ".join(filter(None, [legend, describe_adaptation(evaluation.settings)]))])


def format_calibration(evaluation: Evaluation, style: TableStyle = "text") -> str:
    """Log loss and calibration error by domain and on average by role, as they are and with one temperature.

    Of the baseline and the method, which are the first two predictors.
    """
    names = evaluation.predictors[:2]
    rows = [
        [domain, ROLE_TITLES[role], *(cell for name in names for cell in _loss_cells(evaluation, name, [domain]))]
        for domain, role in evaluation.domains.items()
    ]
    for role in evaluation.roles:
        cells = (cell for name in names for cell in _loss_cells(evaluation, name, evaluation.domains_of(role)))
        rows.append(["average", ROLE_TITLES[role], *cells])
    titles = [f"{name}: {what}" for name in names for what in ("log loss", "calibration error")]
    legend = "Log loss in nats; calibration error in points, ten bins over all queries of a domain."
    fitted = [f"{name} {evaluation.temperatures[name]:.2f}" for name in names if name in evaluation.temperatures]
    if fitted:
        legend += f" After the arrow: with one temperature, fitted on validation episodes ({', '.join(fitted)})."
    return "\n\n".join([_render(["domain", "role"], titles, rows, style), legend])


def describe_adaptation(settings: Mapping[str, Any]) -> str:
    """A sentence for the legend of every table: how was fine-tuned, and what its learning rate was chosen on."""
    adaptation = settings.get("adaptation", {"kind": "prototype"})
    if adaptation["kind"] == "prototype":
        return ""
    chosen = {
        "given": f"{adaptation['learning_rate']:g}, as given",
        "auto": "chosen for each episode on images left out of its support",
        "validation": "chosen on validation episodes",
        "test_tasks": "chosen with the query labels of the first five test tasks of each domain (the published "
        "protocol, which looks at test labels)",
    }
    kind = {"full": "Full fine-tuning", "lora": "LoRA"}[adaptation["kind"]]
    return f"{kind} on each support, {adaptation['steps']} steps, learning rate {chosen[settings['rate_selection']]}."


def report_as_dict(evaluation: Evaluation) -> dict[str, Any]:
    """The same and more as plain data: shares from 0 to 1, `None` for an interval that one episode does not give.

    Returns:
        `{"baseline": name, "domains": {name: {"role", "accuracy", "difference", "log_loss", "calibration_error"}},
        "averages": {role: {"accuracy", "difference"}}, "temperatures": {name: temperature}, "adaptation": sentence}`,
        where `accuracy` and `difference` hold an estimate for each predictor, and the other two
        `{"before": value, "after": value}`, after meaning with its temperature.
    """
    baseline, *others = evaluation.predictors

    def estimates(accuracy: _Measure, difference: _Measure) -> dict[str, Any]:
        return {
            "accuracy": {name: _plain(accuracy(name)) for name in (baseline, *others)},
            "difference": {name: _plain(difference(name)) for name in others},
        }

    return {
        "baseline": baseline,
        "domains": {
            domain: {"role": role, **estimates(accuracy, difference), **_losses(evaluation, domain)}
            for domain, role, accuracy, difference in _by_domain(evaluation)
        },
        "averages": {role: estimates(accuracy, difference) for role, accuracy, difference in _by_role(evaluation)},
        "temperatures": dict(evaluation.temperatures),
        "adaptation": describe_adaptation(evaluation.settings),
    }


def format_percent(estimate: Estimate, *, signed: bool = False) -> str:
    """A share as a percentage with half its interval: `63.2 ± 1.1`; a difference is `signed`: `+8.4 ± 0.9`."""
    mean = round(100 * estimate.mean, 1) + 0.0  # never "-0.0"
    text = f"{mean:+.1f}" if signed else f"{mean:.1f}"
    return text if math.isnan(estimate.half_width) else f"{text} ± {100 * estimate.half_width:.1f}"


def _by_domain(evaluation: Evaluation) -> Iterator[tuple[str, Role, _Measure, _Measure]]:
    baseline = evaluation.predictors[0]
    for domain, role in evaluation.domains.items():
        accuracy = partial(evaluation.accuracy, domain=domain)
        yield domain, role, accuracy, partial(evaluation.difference, baseline=baseline, domain=domain)


def _by_role(evaluation: Evaluation) -> Iterator[tuple[Role, _Measure, _Measure]]:
    baseline = evaluation.predictors[0]
    for role in evaluation.roles:
        accuracy = partial(evaluation.average_accuracy, role=role)
        yield role, accuracy, partial(evaluation.average_difference, baseline=baseline, role=role)


def _losses(evaluation: Evaluation, domain: str) -> dict[str, dict[str, dict[str, float | None]]]:
    parts = {
        name: (evaluation.log_loss(name, domain), evaluation.calibration_error(name, domain))
        for name in evaluation.predictors
    }
    return {
        title: {
            name: {when: None if math.isnan(value) else value for when, value in vars(both[place]).items()}
            for name, both in parts.items()
        }
        for place, title in enumerate(("log_loss", "calibration_error"))
    }


def _loss_cells(evaluation: Evaluation, predictor: str, domains: Sequence[str]) -> list[str]:
    measures = ((evaluation.log_loss, 1, ".3f"), (evaluation.calibration_error, 100, ".1f"))
    cells = []
    for measure, factor, digits in measures:
        of_domains = [measure(predictor, domain) for domain in domains]
        before, after = (
            factor * statistics.fmean(getattr(each, part) for each in of_domains) for part in ("before", "after")
        )
        cells.append(f"{before:{digits}}" if math.isnan(after) else f"{before:{digits}} → {after:{digits}}")
    return cells


def _titles(predictors: Sequence[str]) -> list[str]:
    return [title for name in predictors for title in (name, "difference")]


def _cells(predictors: Sequence[str], accuracy: _Measure, difference: _Measure) -> list[str]:
    return [
        cell
        for name in predictors
        for cell in (format_percent(accuracy(name)), format_percent(difference(name), signed=True))
    ]


def _render(words: Sequence[str], figures: Sequence[str], rows: Sequence[Sequence[str]], style: TableStyle) -> str:
    return render_table([*words, *figures], rows, "<" * len(words) + ">" * len(figures), style)


def _plain(estimate: Estimate) -> dict[str, float | int | None]:
    figures = {
        "mean": estimate.mean,
        "half_width": estimate.half_width,
        "low": estimate.low,
        "high": estimate.high,
        "count": estimate.count,
    }
    return {name: None if math.isnan(value) else value for name, value in figures.items()}
