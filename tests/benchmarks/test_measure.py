"""Figures are taken as benchmarks/measure.py says."""

import json
import os
from collections.abc import Iterator

import pytest
import torch

import measure

CPU = torch.device("cpu")
MEGABYTE = 2**20


def test_sides_are_called_in_turn_and_each_goes_first_as_often() -> None:
    calls: list[str] = []
    sides = {"ours": lambda: calls.append("o"), "baseline": lambda: calls.append("b")}
    measured = measure.interleave(sides, CPU, rounds=4, warmup=2)
    assert "".join(calls) == "obbo" * 3
    assert {side: len(phases[""]) for side, phases in measured.items()} == {"ours": 4, "baseline": 4}


def test_a_phase_that_comes_several_times_in_a_call_is_summed() -> None:
    clock = iter(range(100))

    def side() -> Iterator[str]:
        for _ in range(3):
            yield "forward"
            next(clock)
            yield "backward"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure.time, "perf_counter", lambda: next(clock))
        seconds = measure.seconds_of(side, CPU)
    assert seconds == {"forward": 3, "backward": 6}


def test_a_ratio_is_the_median_of_the_rounds_own() -> None:
    ours, baseline = [1.0, 2.0, 10.0], [3.0, 4.0, 10.0]
    row = measure.compare("x", ours, baseline)
    assert (row.ours, row.baseline, row.ratio) == (2.0, 4.0, 2.0)
    assert row.spread == pytest.approx((2.5 - 1.5) / 2)
    assert measure.compare("x", ours, baseline, ratio_is="ours / baseline").ratio == pytest.approx(0.5)


def test_the_last_line_is_one_object_or_a_list_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = measure.make_parser("x").parse_args(["--threads", "1", "--device", "cpu"])
    row = measure.compare("x", [1.0], [2.0])
    measure.report([row], arguments, parameters=3)
    one = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"name", "unit", "ours", "baseline", "ratio", "spread", "settings", "versions", "device"} <= one.keys()
    assert one["settings"]["parameters"] == 3
    assert one["device"].startswith("CPU")
    measure.report([row, row], arguments, parameters=3)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == [one, one]


def test_peak_memory_is_that_of_the_call_alone() -> None:
    def allocate() -> None:
        torch.ones(100 * MEGABYTE // 4)

    torch.ones(200 * MEGABYTE // 4)  # a peak before it does not count
    peak = measure.peak_memory(allocate, CPU)
    assert 95 * MEGABYTE < peak.above < 120 * MEGABYTE
    assert peak.total > peak.above
    assert measure.peak_memory(lambda: None, CPU).above < 20 * MEGABYTE


def test_a_side_has_a_process_of_its_own() -> None:
    assert measure.in_own_process(os.getpid) != os.getpid()
