"""Claims about methods, judged by the records of their evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from smat_peft.evaluation.bootstrap import Interval, Verdict, pair_records, verdict
from smat_peft.evaluation.records import Record, Role

Measured = Mapping[tuple[str, str], Sequence[Record]]
"""Records of all training seeds by method and adaptation."""


class Contrast(NamedTuple):
    """A method is better than a baseline on the domains of a role, or worse by less than `margin` (a share).

    Each may be followed by an adaptation: `("SMAT", "lora")`.
    """

    method: str | tuple[str, str]
    baseline: str | tuple[str, str]
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
        verdict: `"does not hold"` if that is so for one contrast.
    """

    claim: Claim
    intervals: dict[Contrast, Interval]
    verdict: Verdict | None


def judge(claim: Claim, measured: Measured) -> Judgement:
    """Judge a claim, by the training seeds that a method and its baseline have in common.

    Raises:
        DataError: Two methods were not measured on the same episodes.
    """
    intervals = {}
    for contrast in claim.contrasts:
        ours, theirs = (_key(side) for side in (contrast.method, contrast.baseline))
        if ours in measured and theirs in measured:
            pair = _of_common_seeds(measured[ours], measured[theirs])
            if all(pair):
                differences = pair_records(*pair)
                intervals[contrast] = differences.interval(differences.domains(contrast.role))
    verdicts = {verdict(interval, -contrast.margin) for contrast, interval in intervals.items()}
    if "does not hold" in verdicts:
        return Judgement(claim, intervals, "does not hold")
    if len(intervals) < len(claim.contrasts):
        return Judgement(claim, intervals, None)
    return Judgement(claim, intervals, "holds" if verdicts == {"holds"} else "undecided")


def _of_common_seeds(ours: Sequence[Record], theirs: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The records of seeds that both have; a baseline that was not trained goes with any."""
    trained = {record.seed for record in theirs} - {None}
    common = {record.seed for record in ours} & (trained or {record.seed for record in ours})
    return [each for each in ours if each.seed in common], [each for each in theirs if each.seed in common | {None}]


def _key(side: str | tuple[str, str]) -> tuple[str, str]:
    return (side, "prototype") if isinstance(side, str) else side
