"""Keeps the records of an evaluation, so that one that was cut goes on where it stopped.

While it runs, they lie in a text file beside their later place: a first line of JSON with the settings and what was
fitted on validation episodes, then a line for each episode. A line that was being written when the evaluation was cut
is passed over. At the end there is one parquet file for each predictor, and the text file is gone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from smat_peft.errors import CheckpointError
from smat_peft.evaluation.fitting import Fitted
from smat_peft.evaluation.measuring import Measured
from smat_peft.evaluation.record_files import (
    BY_DOMAIN,
    calibration_of,
    merged_settings,
    read_records,
    record_file,
    record_of,
    write_records,
)
from smat_peft.evaluation.records import Evaluation


class Journal:
    """The records of some predictors in a folder.

    Args:
        folder: The folder, made when the first record is written; None keeps nothing.
        predictors: Names of the predictors.
        seed: Their training seed.
        adaptation: Their kind of adaptation.
        settings: All that the records depend on, as plain data for JSON.

    Attributes:
        found: What parquet files hold already.
        fitted: What the text file says was fitted; None where there is no such file.
        measured: What the text file holds beside.

    Raises:
        CheckpointError: There are records that were made with other settings, or that cannot be read.
    """

    def __init__(
        self,
        folder: Path | None,
        predictors: Sequence[str],
        seed: int | None,
        adaptation: str,
        settings: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.predictors = predictors
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))  # tuples become lists, as in the files
        self.found = Evaluation([], settings=self.settings)
        self.fitted: Fitted | None = None
        self.measured: list[Measured] = []
        if folder is None:
            return
        files = [record_file(folder, name, seed, adaptation) for name in predictors]
        digest = hashlib.sha256(" ".join(path.name for path in files).encode()).hexdigest()[:8]
        self.path = folder / f".unfinished-{digest}.jsonl"
        found = {path: read_records(path) for path in files if path.is_file()}
        for path, evaluation in found.items():
            self._check(evaluation.settings, path)
        if found:
            self.found = read_records(found)
        if self.path.is_file():
            self._load()

    @property
    def finished(self) -> Evaluation:
        """What the parquet files hold of the domains that all predictors were measured on."""
        records = self.found.records
        of_each = [{each.domain for each in records if each.predictor == name} for name in self.predictors]
        return self.found.of_domains(set.intersection(*of_each))

    def begin(self, fitted: Fitted) -> None:
        """Start the text file, unless it is there already."""
        if self.folder is not None and self.fitted is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"settings": self.settings, "fitted": asdict(fitted)}) + "\n")
            self.fitted = fitted

    def add(self, episodes: Iterable[Sequence[Measured]]) -> None:
        """Append what all predictors did on some episodes."""
        if self.folder is not None:
            with self.path.open("a") as file:
                file.writelines(json.dumps([_to_plain(each) for each in measured]) + "\n" for measured in episodes)

    def finish(self, evaluation: Evaluation) -> None:
        """Write the parquet files, together with the domains that they hold already, and take the text file away."""
        if self.folder is not None:
            others = self.found.of_domains(self.found.domains.keys() - evaluation.domains.keys())
            together = Evaluation(
                [*others.records, *evaluation.records],
                {**others.calibration, **evaluation.calibration},
                evaluation.temperatures,
                merged_settings([evaluation.settings, others.settings]),
            )
            write_records(self.folder, together)
            self.path.unlink(missing_ok=True)

    def _load(self) -> None:
        text = self.path.read_text()
        first, *lines = text.splitlines() or [""]
        try:
            header = json.loads(first)
            settings, fitted = header["settings"], Fitted(**header["fitted"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.path} is damaged; delete it to measure its episodes again") from error
        self._check(settings, self.path)
        self.fitted = fitted
        if not text.endswith("\n"):
            self.path.write_text(text + "\n")
        for line in lines:
            try:
                self.measured += [_from_plain(each) for each in json.loads(line)]
            except ValueError:  # it was being written when the evaluation was cut
                continue

    def _check(self, found: Mapping[str, Any], path: Path) -> None:
        differ = [
            what.format(domain)
            for key, what in BY_DOMAIN.items()
            for domain, wanted in self.settings[key].items()
            if found.get(key, {}).get(domain, wanted) != wanted
        ]
        names = sorted((found.keys() | self.settings.keys()) - BY_DOMAIN.keys())
        differ += [
            f"{name} {found.get(name)!r}, now {self.settings.get(name)!r}"
            for name in names
            if found.get(name) != self.settings.get(name)
        ]
        if differ:
            raise CheckpointError(
                f"{path} was made with other settings ({'; '.join(differ)}); choose another folder, or delete it"
            )


def _to_plain(measured: Measured) -> dict[str, Any]:
    before, after = measured.calibration.before, measured.calibration.after
    return {
        "record": asdict(measured.record),
        "before": before.bins.tolist(),
        "after": None if after is None else after.bins.tolist(),
    }


def _from_plain(line: dict[str, Any]) -> Measured:
    return Measured(record_of(line["record"]), calibration_of(line))
