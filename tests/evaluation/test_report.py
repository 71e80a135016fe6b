"""Tables and plain data of a small evaluation whose figures are known."""

import dataclasses
import json
import math

import numpy as np
import pytest

from smat_peft.errors import DataError
from smat_peft.evaluation.calibration import Calibration, Reliability
from smat_peft.evaluation.records import Evaluation, Record
from smat_peft.evaluation.report import format_calibration, format_percent, format_report, report_as_dict
from smat_peft.evaluation.statistics import Estimate
from smat_peft.few_shot.fine_tuning import Adaptation

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


def calibrated(after=True):
    """Log losses 0.5 of the backbone and 0.25 of SMAT, halved by a temperature."""
    evaluation = evaluation_of()
    records = [
        dataclasses.replace(
            record,
            log_loss=0.5 if record.predictor == "backbone" else 0.25,
            calibrated_log_loss=(0.25 if record.predictor == "backbone" else 0.125) if after else math.nan,
        )
        for record in evaluation.records
    ]
    sharp = np.zeros((3, 10))
    sharp[:, 9] = 10, 9.5, 7
    mended = np.zeros((3, 10))
    mended[:, 7] = 10, 7.5, 7
    calibration = Calibration(Reliability(sharp), Reliability(mended) if after else None)
    names = [(predictor, domain) for predictor in evaluation.predictors for domain in evaluation.domains]
    return Evaluation(records, dict.fromkeys(names, calibration), dict.fromkeys(evaluation.predictors, 2.0))


def test_calibration_is_shown_before_and_after_the_temperature():
    lines = format_calibration(calibrated()).splitlines()
    assert lines[2].split("  ")[0] == "greek"
    assert [cell.strip() for cell in lines[2].split("  ") if "→" in cell] == [
        *("0.500 → 0.250", "25.0 → 5.0", "0.250 → 0.125", "25.0 → 5.0"),
    ]
    assert lines[5].startswith("average    ID")
    assert "(backbone 2.00, SMAT 2.00)" in lines[-1]


def test_calibration_without_a_temperature_has_no_arrow():
    text = format_calibration(dataclasses.replace(calibrated(after=False), temperatures={}))
    assert "→" not in text
    assert "arrow" not in text
    assert "25.0" in text


def test_the_data_hold_log_loss_and_calibration_error():
    greek = json.loads(json.dumps(report_as_dict(calibrated()), allow_nan=False))["domains"]["greek"]
    assert greek["log_loss"]["SMAT"] == {"before": 0.25, "after": 0.125}
    assert greek["calibration_error"]["SMAT"] == pytest.approx({"before": 0.25, "after": 0.05})
    bare = json.loads(json.dumps(report_as_dict(evaluation_of()), allow_nan=False))["domains"]["greek"]
    assert bare["log_loss"]["SMAT"] == {"before": None, "after": None}


@pytest.mark.parametrize(
    ("selection", "sentence"),
    [
        ("given", "LoRA on each support, 20 steps, learning rate 0.001, as given."),
        ("auto", "chosen for each episode on images left out of its support."),
        ("validation", "chosen on validation episodes."),
        ("test_tasks", "chosen with the query labels of the first five test tasks of each domain"),
    ],
)
def test_every_table_says_how_the_learning_rate_was_chosen(selection, sentence):
    settings = {"adaptation": vars(Adaptation("lora", steps=20)), "rate_selection": selection}
    evaluation = dataclasses.replace(evaluation_of(), settings=settings)
    assert sentence in format_report(evaluation)
    assert sentence in report_as_dict(evaluation)["adaptation"]


def test_what_was_measured_on_other_episodes_or_twice_is_not_paired():
    first, second = evaluation_of(("backbone",)), evaluation_of(("SMAT",))
    later = [dataclasses.replace(record, index=record.index + 2) for record in second.records]
    with pytest.raises(DataError, match="'SMAT' and 'backbone' were measured on different episodes of domain 'greek'"):
        Evaluation([*first.records, *later]).difference("SMAT", "backbone", "greek")
    seeds = [dataclasses.replace(record, seed=seed) for record in second.records for seed in (0, 1)]
    with pytest.raises(DataError, match="two records of 'SMAT' on greek 0: those of several training seeds"):
        format_report(Evaluation([*first.records, *seeds]))
