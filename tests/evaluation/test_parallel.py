"""An evaluation by two processes has the records of one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from smat_peft.evaluation import read_records
from tests.evaluation.parallel_worker import run
from tests.processes import launch

WORKER = Path(__file__).with_name("parallel_worker.py")


def test_two_processes_give_the_records_of_one(tmp_path: Path) -> None:
    ended = launch(2, WORKER, tmp_path / "report.json", tmp_path / "records")
    assert ended.returncode == 0, ended.stderr
    expected, seen = run(None, None)
    reports = [json.loads((tmp_path / f"report.{process}.json").read_text()) for process in range(2)]
    assert sum(report["seen"] for report in reports) == seen
    assert abs(reports[0]["seen"] - reports[1]["seen"]) <= 3  # one of an odd number for each domain, and for validation
    for report in reports:
        assert (report["processes"], report["device"]) == (2, "cpu")
        assert report["squares"] == [0, 1, 4, 9, 16]
        assert len(report["records"]) == len(expected.records) == 4 * 2 * 19
        for found, record in zip(report["records"], map(asdict, expected.records), strict=True):
            weights, wanted = found.pop("expert_weights"), record.pop("expert_weights")
            assert found == pytest.approx(record, abs=1e-5)
            assert weights == (None if wanted is None else pytest.approx(list(wanted), abs=1e-5))
        assert report["temperatures"] == pytest.approx(expected.temperatures, abs=1e-4)
        errors = {" ".join(key): value.before.error for key, value in expected.calibration.items()}
        assert report["errors"] == pytest.approx(errors, abs=1e-5)
    kept = read_records(tmp_path / "records")
    assert {(record.predictor, record.domain, record.index, round(record.accuracy, 5)) for record in kept.records} == {
        (record.predictor, record.domain, record.index, round(record.accuracy, 5)) for record in expected.records
    }
