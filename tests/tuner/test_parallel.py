"""Data-parallel and fully sharded wrappers: two processes train as one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.processes import TORCHRUN, python

WORKER = Path(__file__).with_name("parallel_worker.py")


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_have_the_gradients_of_one_and_its_state_dict(mode: str, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    ended = python(*TORCHRUN, 2, WORKER, mode, output, CUDA_VISIBLE_DEVICES="")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(output.read_text())
    assert report["processes"] == 2
    assert report["trained"] == ["delta", "gates"]
    assert report["gradients"] < 1e-5
    assert report["reloaded"] == 0
