"""Claims about methods, judged by the records of their evaluations."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from smat_peft.evaluation.bootstrap import Interval, Verdict, pair_records, verdict
from smat_peft.evaluation.records import Record, Role

RecordsByRow = Mapping[tuple[str, str], Sequence[Record]]
"""Records of all training seeds by method and adaptation."""


class Contrast(NamedTuple):
    """A method is better than a baseline on the domains of a role, or worse by less than `margin` (a share).

    Each is named with an adaptation: `("SMAT", "lora")`.
    """

    method: tuple[str, str]
    baseline: tuple[str, str]
    role: Role
    margin: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A sentence that holds if all of its contrasts do."""

    sentence: str
    contrasts: Sequence[Contrast]


@dataclass(frozen=True)
class Judgement:
    """What records say of a claim; `None` in place of a verdict where some are missing.

    Attributes:
        claim: The claim.
        intervals: By contrast, of the difference in accuracy; of those that could be made.
        without: The same without some domains, where any were to be left out of others.
        verdict: `"does not hold"` if that is so for one contrast.
    """

    claim: Claim
    intervals: dict[Contrast, Interval]
    without: dict[Contrast, Interval]
    verdict: Verdict | None


def judge(claim: Claim, measured: RecordsByRow, aside: Collection[str] = ()) -> Judgement:
    """Judge a claim, by the training seeds that a method and its baseline have in common.

    Args:
        claim: The claim.
        measured: Records of all that it speaks of.
        aside: Domains that differences are given without, too, which the verdict does not depend on.

    Raises:
        DataError: Two methods were not measured on the same episodes.
    """
    intervals: dict[Contrast, Interval] = {}
    without: dict[Contrast, Interval] = {}
    for contrast in claim.contrasts:
        if contrast.method in measured and contrast.baseline in measured:
            pair = _of_common_seeds(measured[contrast.method], measured[contrast.baseline])
            if all(pair):
                differences = pair_records(*pair)
                domains = differences.domains(contrast.role)
                intervals[contrast] = differences.interval(domains)
                others = [domain for domain in domains if domain not in aside]
                if 0 < len(others) < len(domains):
                    without[contrast] = differences.interval(others)
    verdicts = {verdict(interval, -contrast.margin) for contrast, interval in intervals.items()}
    if "does not hold" in verdicts:
        return Judgement(claim, intervals, without, "does not hold")
    if len(intervals) < len(claim.contrasts):
        return Judgement(claim, intervals, without, None)
    return Judgement(claim, intervals, without, "holds" if verdicts == {"holds"} else "undecided")


def _of_common_seeds(ours: Sequence[Record], theirs: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The records of seeds that both have; a baseline that was not trained goes with any."""
    trained = {record.seed for record in theirs} - {None}
    common = {record.seed for record in ours} & (trained or {record.seed for record in ours})
    return [each for each in ours if each.seed in common], [each for each in theirs if each.seed in common | {None}]
