"""Tables and plain data of a small evaluation whose figures are known."""

import json

import pytest

from smat_peft.evaluation.records import Evaluation, Record
from smat_peft.evaluation.report import format_percent, format_report, report_as_dict
from smat_peft.evaluation.statistics import Estimate

ACCURACIES = {
    ("greek", "id"): {"backbone": (0.5, 0.7), "SMAT": (0.6, 0.8), "even mix": (0.5, 0.8)},
    ("digits", "test_ood"): {"backbone": (0.4, 0.4), "SMAT": (0.4, 0.3), "even mix": (0.4, 0.4)},
    ("syllabics", "id"): {"backbone": (0.2, 0.4), "SMAT": (0.5, 0.7), "even mix": (0.2, 0.4)},
}


def evaluation_of(predictors=("backbone", "SMAT", "even mix"), episodes=2):
    return Evaluation(
        [
            Record(predictor, domain, role, index, 5, 25, 50, accuracies[predictor][index])
            for (domain, role), accuracies in ACCURACIES.items()
            for index in range(episodes)
            for predictor in predictors
        ]
    )


def test_the_report_in_a_terminal():
    assert format_report(evaluation_of()) == "\n".join(
        [
            "domain     role         backbone         SMAT   difference",
            "---------  --------  -----------  -----------  -----------",
            "greek      ID        60.0 ± 19.6  70.0 ± 19.6  +10.0 ± 0.0",
            "syllabics  ID        30.0 ± 19.6  60.0 ± 19.6  +30.0 ± 0.0",
            "digits     test-OOD   40.0 ± 0.0   35.0 ± 9.8   -5.0 ± 9.8",
            "average    ID        45.0 ± 13.9  65.0 ± 13.9  +20.0 ± 0.0",
            "average    test-OOD   40.0 ± 0.0   35.0 ± 9.8   -5.0 ± 9.8",
            "",
            "average      even mix  difference",
            "--------  -----------  ----------",
            "ID        47.5 ± 17.7  +2.5 ± 4.9",
            "test-OOD   40.0 ± 0.0  +0.0 ± 0.0",
            "",
            "Query accuracy in %, mean ± half the 95 % interval; 2 episodes a domain. "
            "Difference: to backbone on the same episodes.",
        ]
    )


def test_the_report_on_github_has_the_same_cells():
    def cells(report, separator):
        lines = [line for line in report.splitlines() if "---" not in line]
        return [[cell.strip() for cell in line.strip("| ").split(separator) if cell.strip()] for line in lines]

    markdown = format_report(evaluation_of(), "markdown")
    assert "| :---" not in markdown
    assert "| --------- | -------- | ----------: |" in markdown
    assert cells(markdown, " | ") == cells(format_report(evaluation_of()), "  ")


def test_a_backbone_alone_has_no_difference():
    report = format_report(evaluation_of(["backbone"]))
    assert "difference" not in report.lower()
    assert "greek      ID        60.0 ± 19.6" in report


def test_the_data_survive_json_and_hold_every_predictor_and_domain():
    data = json.loads(json.dumps(report_as_dict(evaluation_of()), allow_nan=False))
    assert data["baseline"] == "backbone"
    assert list(data["domains"]) == ["greek", "syllabics", "digits"]
    assert list(data["domains"]["greek"]["accuracy"]) == ["backbone", "SMAT", "even mix"]
    average = data["averages"]["id"]["difference"]["SMAT"]
    assert average == pytest.approx({"mean": 0.2, "half_width": 0, "low": 0.2, "high": 0.2, "count": 4})


def test_an_interval_that_one_episode_does_not_give_is_left_out():
    single = evaluation_of(episodes=1)
    assert "greek      ID            50.0  60.0       +10.0" in format_report(single)
    data = json.loads(json.dumps(report_as_dict(single), allow_nan=False))
    assert data["domains"]["greek"]["accuracy"]["SMAT"]["half_width"] is None


@pytest.mark.parametrize(
    ("estimate", "signed", "text"),
    [
        (Estimate(0.6321, 0.0114, 100), False, "63.2 ± 1.1"),
        (Estimate(0.0838, 0.0091, 100), True, "+8.4 ± 0.9"),
        (Estimate(-0.0004, 0.0091, 100), True, "+0.0 ± 0.9"),
        (Estimate(-0.0838, 0.0, 100), True, "-8.4 ± 0.0"),
    ],
)
def test_percentages_have_one_decimal(estimate, signed, text):
    assert format_percent(estimate, signed=signed) == text
