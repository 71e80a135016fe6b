"""What a sweep over sparsity and number of experts found, as a table on disk."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from smat_peft.errors import DataError


@dataclass(frozen=True)
class SweepCell:
    """One run of a sweep. Accuracies and sparsities are shares from 0 to 1; intervals are 95 %, over episodes.

    Attributes:
        target_sparsity: Wanted of each expert.
        num_experts: M.
        delta_lr: Learning rate of delta.
        seed: Of training.
        validation_score: What rates are chosen by: mean of the last accuracies on validation and on dev-OOD episodes.
        id_accuracy: Average over ID domains.
        id_half_width: Half its interval.
        dev_ood_accuracy: Average over dev-OOD domains.
        dev_ood_half_width: Half its interval.
        sparsity: Of the gates as they are evaluated, mean over experts.
        merged_sparsity: Share of scalars that no expert changes.
        training_seconds: What the run took.
    """

    target_sparsity: float
    num_experts: int
    delta_lr: float
    seed: int
    validation_score: float
    id_accuracy: float
    id_half_width: float
    dev_ood_accuracy: float
    dev_ood_half_width: float
    sparsity: float
    merged_sparsity: float
    training_seconds: float


def best_rates(cells: Iterable[SweepCell]) -> list[SweepCell]:
    """Of runs that differ by their learning rate alone, the one of the best validation score."""
    best: dict[tuple[float, int, int], SweepCell] = {}
    for cell in sorted(cells, key=lambda cell: cell.validation_score):
        best[cell.target_sparsity, cell.num_experts, cell.seed] = cell
    return list(best.values())


def write_sweep(cells: Iterable[SweepCell], path: Path) -> None:
    """Write cells as CSV, in the order of their settings."""
    ordered = sorted(cells, key=dataclasses.astuple)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in dataclasses.fields(SweepCell)])
        writer.writerows([f"{value:.6g}" for value in dataclasses.astuple(cell)] for cell in ordered)


def read_sweep(path: Path) -> list[SweepCell]:
    """Read what [`write_sweep`] wrote.

    Raises:
        DataError: There is no such file, or it is no such table, or an empty one.
    """
    types: dict[str, type] = {
        field.name: int if field.type == "int" else float for field in dataclasses.fields(SweepCell)
    }
    if not path.is_file():
        raise DataError(f"there is no sweep {path}; make one with examples/sweep.py")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        cells = [SweepCell(**{name: types[name](text) for name, text in row.items()}) for row in rows]
    except (csv.Error, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a table that examples/sweep.py wrote: {error}") from error
    if not cells:
        raise DataError(f"{path} holds no finished run yet")
    return cells
