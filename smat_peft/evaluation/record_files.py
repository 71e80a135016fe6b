"""Records as parquet files, one for each predictor, training seed and adaptation: a row an episode.

What belongs to a file as a whole lies in its metadata as JSON: the settings of the evaluation, the predictor's
temperature, and its reliability by domain.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from smat_peft.errors import CheckpointError
from smat_peft.evaluation.calibration import Calibration, Reliability
from smat_peft.evaluation.records import Evaluation, Record
from smat_peft.files import replacing

FORMAT_VERSION = 1
METADATA = b"smat_peft"
SPLITS, IMAGES = "splits", "images"
BY_DOMAIN = {SPLITS: "how episodes of {} are drawn", IMAGES: "the images of {}, or how they are made into pixels"}
DIGITS = 5  # after the point, of sums over all queries of a domain
SCHEMA = pa.schema(
    {
        "predictor": pa.string(),
        "domain": pa.string(),
        "role": pa.string(),
        "index": pa.int32(),
        "ways": pa.int16(),
        "support": pa.int32(),
        "queries": pa.int32(),
        "accuracy": pa.float32(),
        "expert_weights": pa.list_(pa.float32()),
        "log_loss": pa.float32(),
        "calibrated_log_loss": pa.float32(),
        "seed": pa.int32(),
        "adaptation": pa.string(),
        "learning_rate": pa.float32(),
    }
)

COMPACT: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["predictor", "domain", "role", "adaptation", "accuracy", "learning_rate"],
    "use_byte_stream_split": ["expert_weights.list.element", "log_loss", "calibrated_log_loss"],
}


def record_file(folder: Path, predictor: str, seed: int | None, adaptation: str) -> Path:
    """Where the records of a predictor are kept, such as `SMAT-lora-seed3.parquet`."""
    plain = re.sub(r"[^\w.+]+", "-", predictor).strip("-")
    return folder / f"{plain}-{adaptation}{'' if seed is None else f'-seed{seed}'}.parquet"


def write_records(folder: str | Path, evaluation: Evaluation) -> list[Path]:
    """Write an evaluation into a folder, each file beside its place and then renamed over an older one.

    Returns:
        The files.

    Raises:
        CheckpointError: Two predictors would have one file, or the folder cannot be written to.
    """
    by_file: dict[Path, list[Record]] = {}
    for record in evaluation.records:
        path = record_file(Path(folder), record.predictor, record.seed, record.adaptation)
        by_file.setdefault(path, []).append(record)
    for path, records in by_file.items():
        names = {record.predictor for record in records}
        if len(names) > 1:
            raise CheckpointError(f"{' and '.join(sorted(names))} would share the file {path.name}; rename one")
        _write(path, records, evaluation)
    return list(by_file)


def read_records(paths: str | Path | Iterable[str | Path]) -> Evaluation:
    """Read one file of records, several, or all `*.parquet` of a folder, as one evaluation.

    Several seeds or adaptations of one predictor are of no use in the tables of a report: filter the records, or read
    the files that you want. Settings are those of the first file, with the splits of all domains; where two files hold
    a predictor's calibration on a domain, the last one counts.

    Raises:
        CheckpointError: A file is missing, damaged, of another format or no file of records.
    """
    if isinstance(paths, str | Path):
        given = Path(paths)
        paths = sorted(given.glob("*.parquet")) if given.is_dir() else [given]
    parts = [_read(Path(path)) for path in paths]
    if not parts:
        raise CheckpointError(f"there are no files of records in {paths}")
    return Evaluation(
        records=[record for part in parts for record in part.records],
        calibration={key: value for part in parts for key, value in part.calibration.items()},
        temperatures={name: value for part in parts for name, value in part.temperatures.items()},
        settings=merged_settings([part.settings for part in parts]),
    )


def merged_settings(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first of several settings, with what all say of each domain: domains may be added to an evaluation."""
    of_domains = {
        key: {domain: value for part in parts for domain, value in part.get(key, {}).items()}
        for key in BY_DOMAIN
        if any(key in part for part in parts)
    }
    return {**parts[0], **of_domains}


def _write(path: Path, records: Sequence[Record], evaluation: Evaluation) -> None:
    name = records[0].predictor
    about = {
        "format_version": FORMAT_VERSION,
        "settings": evaluation.settings,
        "temperature": evaluation.temperatures.get(name),
        "calibration": {
            domain: {part: None if bins is None else _rounded(bins) for part, bins in vars(calibration).items()}
            for (predictor, domain), calibration in evaluation.calibration.items()
            if predictor == name
        },
    }
    table = pa.Table.from_pylist([asdict(record) for record in records], SCHEMA)
    with replacing(path) as partial, pq.ParquetWriter(partial, SCHEMA, **COMPACT) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({METADATA: json.dumps(about)})


def _read(path: Path) -> Evaluation:
    try:
        table = pq.read_table(path)
        about: dict[str, Any] = json.loads((pq.read_metadata(path).metadata or {})[METADATA])
        if about["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version is {about['format_version']!r}, and {FORMAT_VERSION} can be read")
        records = [record_of(row) for row in table.select([field.name for field in fields(Record)]).to_pylist()]
        name = records[0].predictor
        calibration = {(name, domain): calibration_of(parts) for domain, parts in about["calibration"].items()}
        temperature = about["temperature"]
        temperatures = {} if temperature is None else {name: float(temperature)}
        return Evaluation(records, calibration, temperatures, about["settings"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise CheckpointError(f"{path} is no whole file of records: {reason}") from error


def record_of(row: Mapping[str, Any]) -> Record:
    """A record from its fields, as `dataclasses.asdict` gives them or JSON gives those back."""
    weights = row["expert_weights"]
    return Record(**{**row, "expert_weights": None if weights is None else tuple(weights)})


def calibration_of(parts: Mapping[str, Any]) -> Calibration:
    """A calibration from the bins `[3, B]` `before`, and `after` a temperature or None."""
    after = parts["after"]
    return Calibration(_reliability(parts["before"]), None if after is None else _reliability(after))


def _rounded(reliability: Reliability) -> list[list[float]]:
    return [[int(value) if value == int(value) else round(value, DIGITS) for value in row] for row in reliability.bins]


def _reliability(bins: list[list[float]]) -> Reliability:
    return Reliability(np.array(bins, dtype=np.float64).reshape(3, -1))
