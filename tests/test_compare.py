"""The comparison of methods: what is run, what is chosen by, and what is said in the end."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import get_peft_model

import compare
from comparison import measuring, training
from comparison.ledger import LEDGER
from comparison.measuring import Look, records_folder, refuse_other_counts, take_look
from comparison.reporting import by_row, read_all, report
from comparison.rows import CLAIMS, DENSE, FIVE_SHOT, HAND_DESIGNED, QUICK_ROWS, RATES, ROWS, SMAT, TAUGHT, WISE
from comparison.runs import merged
from comparison.sooner import reached_sooner
from comparison.suite import FROZEN, freeze
from comparison.training import Study, train_all
from smat_peft import SMATConfig
from smat_peft.assets import DEMO_BACKBONE
from smat_peft.episodes.builtin import ROLES
from smat_peft.errors import CheckpointError, ConfigurationError, DataError
from smat_peft.evaluation import Record
from smat_peft.evaluation.claims import Claim, Contrast, judge
from smat_peft.evaluation.predictors import BACKBONE
from smat_peft.evaluation.record_files import write_records
from smat_peft.evaluation.records import Evaluation, Role
from smat_peft.few_shot.loading import load_backbone


def study(folder: Path, rows: Any = tuple(ROWS), quick: bool = False, seeds: int = 2) -> Study:
    arguments = argparse.Namespace(rows=rows, quick=quick, seeds=seeds, runs_dir=folder, episodes=3)
    arguments.tuned_seeds, arguments.tuned_episodes = (0, 0) if quick else (1, 2)
    return Study(arguments, folder / "results")


def finish(folder: Path, **figures: Any) -> None:
    """As a run of the meta-tuner leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {"sparsity": [0.6, 0.8], "validation_accuracy": 0.5, "dev_ood_accuracy": 0.5}
    common |= {"settings": {"episodes_per_step": 4}, "training_seconds": 60.0, "merged_sparsity": 0.5}
    common["log"] = [{"step": 40, "validation_accuracy": 0.5}]
    (folder / "metrics.json").write_text(json.dumps(common | figures))


def test_the_rate_is_the_one_that_scores_best_on_validation_classes_and_dev_domains(tmp_path: Path) -> None:
    compared = study(tmp_path)
    for rate, validation, dev in zip(RATES, (0.8, 0.9, 0.7, 0.5), (0.1, 0.1, 0.6, 0.7), strict=True):
        finish(compared.trial(DENSE, rate).folder, validation_accuracy=validation, dev_ood_accuracy=dev)
    assert compared.rate(DENSE) == RATES[2]
    assert compared.rate(WISE) == RATES[2]  # what it changes was trained with that one


def test_a_row_of_a_given_sparsity_waits_for_smat_and_gets_the_sparsity_of_its_evaluated_gates(tmp_path: Path) -> None:
    compared = study(tmp_path, quick=True)
    run = compared.training("random experts", 1)
    assert not run.is_ready()
    finish(compared.folder(SMAT, 0), sparsity=[0.1])
    assert not run.is_ready()
    finish(compared.folder(SMAT, 1))
    assert run.is_ready()
    common = merged(training.RECIPES)
    assert run.settings()["target_sparsity"] == pytest.approx(0.7)
    assert compared.training(DENSE, 1).settings()["target_sparsity"] == common["target_sparsity"] != 0.7


def test_what_is_made_of_an_adapter_waits_for_it_and_is_not_trained(tmp_path: Path) -> None:
    compared = study(tmp_path, quick=True)
    run = compared.training(WISE, 0)
    assert not run.is_ready()
    finish(compared.folder(DENSE, 0))
    assert run.is_ready()
    made = {"max_steps": 0, "adapter_name_or_path": str(compared.folder(DENSE, 0))}
    assert run.settings() == run.settings() | made


def test_every_row_has_as_many_trials_and_one_run_a_seed(tmp_path: Path) -> None:
    compared = study(tmp_path, seeds=3)
    trials = compared.searches()
    assert len({run.name for run in trials}) == len(trials) == 14 * len(RATES)  # the others take over a rate
    assert [run.folder for run in compared.trainings(2)] == [compared.folder(name, 2) for name in ROWS]


def look_at(compared: Study, name: str, seed: int) -> None:
    """Records as looks leave them."""
    for look in compared.looks(name, seed):
        for predictor in look.predictors:
            everything = [
                Record(predictor, domain, role, index, 5, 5, 25, 0.5, seed=seed, adaptation=look.adaptation.kind)
                for role, names in ROLES.items()
                for domain in names
                for index in range(look.episodes)
            ]
            write_records(records_folder(compared.results, look.kind), Evaluation(everything))


def test_a_run_whose_looks_are_taken_is_known_without_its_folder(tmp_path: Path) -> None:
    compared = study(tmp_path, [WISE])
    for name in compared.rows():
        for rate in ROWS[name].rates:
            finish(compared.trial(name, rate).folder)
        finish(compared.folder(name, 0))
    assert not compared.searches()
    shutil.rmtree(tmp_path / "search")
    assert not compared.searches()
    assert compared.rate(SMAT) == RATES[0]

    for name in compared.rows():
        assert not compared.trainings(0)
        look_at(compared, name, 0)
    shutil.rmtree(tmp_path / "seed-0")
    assert not study(tmp_path, [WISE]).trainings(0)
    assert not any(compared.looks(name, 0) for name in compared.rows())


def test_a_run_with_other_settings_is_not_taken_for_the_one_that_is_wanted(tmp_path: Path) -> None:
    compared = study(tmp_path, quick=True)
    asked = compared.training(SMAT, 0).settings()
    finish(compared.folder(SMAT, 0), settings=asked)
    assert "seed-0/smat" not in [run.name for run in compared.trainings(0)]
    for name, change in ((SMAT, {"delta_lr": 0.4}), (SMAT, {"max_steps": 240}), (WISE, {"method": "dense"})):
        shutil.rmtree(tmp_path)
        finish(compared.folder(name, 0), settings=asked | change)
        other = study(tmp_path, [name], quick=True)
        with pytest.raises(ConfigurationError, match=f"was made with .*{next(iter(change))}"):
            other.trainings(0)
    shutil.rmtree(tmp_path)
    finish(compared.trial(SMAT, RATES[0]).folder, settings=asked)
    with pytest.raises(ConfigurationError, match=r"search/smat/0.003125 was made with .*delta_lr 0.2, not 0.003125"):
        study(tmp_path).searches()


def test_an_adapter_that_is_gone_is_trained_again_for_a_look_and_for_what_is_made_of_it(tmp_path: Path) -> None:
    compared = study(tmp_path, [WISE], quick=True)
    for name in (SMAT, DENSE):
        finish(compared.folder(name, 0))
        look_at(compared, name, 0)
    assert [run.name for run in compared.trainings(0)] == ["seed-0/wise-ft"]
    shutil.rmtree(tmp_path / "seed-0")
    left = compared.trainings(0)
    assert [run.name for run in left] == ["seed-0/dense-pmf", "seed-0/wise-ft"]
    assert [run.is_ready() for run in left] == [True, False]
    more = study(tmp_path, [SMAT])  # also with gradient steps
    for rate in RATES:
        finish(more.trial(SMAT, rate).folder)
    assert [look.kind for look in more.looks(SMAT, 0)] == ["prototypes of 5 shots", "full", "lora"]
    assert [run.name for run in more.trainings(0)] == ["seed-0/smat"]


def test_records_of_another_number_of_episodes_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    compared = study(tmp_path)
    look_at(compared, DENSE, 0)
    refuse_other_counts(compared.results, compared.episodes())
    compared.arguments.tuned_episodes += 1
    with pytest.raises(DataError, match=r"dense-PMF-full-seed0\.parquet holds 2 episodes .* 3 are wanted: ask for 2"):
        refuse_other_counts(compared.results, compared.episodes() | {FIVE_SHOT: 2})
    compared.arguments.tuned_seeds = 0
    refuse_other_counts(compared.results, compared.episodes())
    with pytest.raises(DataError, match="4 are wanted"):
        compare.main(["--episodes", "4", "--tuned_seeds", "0", "--results_dir", str(compared.results)])


@pytest.mark.usefixtures("threads_for_processes")
def test_bases_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Path] = []

    def run(folder: Path, settings: dict[str, Any], threads: int) -> bool:
        started.append(folder)
        finish(folder)
        return True

    monkeypatch.setattr(training, "run_in", run)
    compared = study(tmp_path, quick=True, seeds=1)
    finish(compared.folder("LoRA", 0))
    train_all(compared.trainings(0), compared.ledger, 2)
    assert len(started) == len(ROWS) - 1
    assert started.index(compared.folder(DENSE, 0)) < started.index(compared.folder(WISE, 0))
    assert not compared.trainings(0)


@pytest.mark.usefixtures("threads_for_processes")
def test_runs_that_fail_are_named_with_their_logs_when_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = study(tmp_path, [WISE], quick=True, seeds=1)

    def run(folder: Path, settings: dict[str, Any], threads: int) -> bool:
        if folder == compared.folder(DENSE, 0):
            return False
        finish(folder)
        return True

    monkeypatch.setattr(training, "run_in", run)
    with pytest.raises(CheckpointError, match=r"1 runs failed; see \S*dense-pmf/run\.log$"):
        train_all(compared.trainings(0), compared.ledger, 1)
    assert [run.name for run in compared.trainings(0)] == ["seed-0/dense-pmf", "seed-0/wise-ft"]


def test_a_quick_comparison_from_the_first_run_to_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = {"max_steps": 1, "episodes_per_step": 1, "max_support": 20, "validation_episodes": 1}
    monkeypatch.setattr(training, "QUICK", small)
    monkeypatch.setitem(compare.QUICK, "episodes", 1)
    monkeypatch.setitem(compare.QUICK, "rows", [SMAT, DENSE])
    words = ["--quick", "--jobs", "2", "--runs_dir", str(tmp_path)]
    compare.main(words)
    text = capsys.readouterr().out
    assert re.search(r"^\| SMAT above the backbone on ID +\| (holds|does not hold|undecided) ", text, re.MULTILINE)
    assert re.search(r"^\| dense \(PMF\) +\| .*\| 0\.0125 \|", text, re.MULTILINE)  # the rate that is taken unsearched
    shutil.rmtree(tmp_path / "seed-0")
    monkeypatch.setattr(training, "run_in", None)  # nothing is to be done again
    compare.main(words)
    assert capsys.readouterr().out == text


def records(name: str, accuracy: float, seeds: Any, noise: float = 0.01) -> list[Record]:
    roles: dict[str, Role] = {"greek": "id", "hebrew": "dev_ood", "arabic": "test_ood"}
    draws = np.random.default_rng(list(name.encode()))
    return [
        Record(name, domain, role, index, 5, 5, 25, accuracy + noise * float(draws.normal()), seed=seed)
        for seed in seeds
        for domain, role in roles.items()
        for index in range(20)
    ]


@pytest.mark.parametrize(
    ("difference", "margin", "expected"),
    [(0.1, 0.0, "holds"), (-0.1, 0.0, "does not hold"), (0.0, 0.0, "undecided"), (-0.1, 0.2, "holds")],
)
def test_a_claim_is_judged_by_the_interval_of_the_difference(difference: float, margin: float, expected: str) -> None:
    measured = {
        (SMAT, "prototype"): records(SMAT, 0.5 + difference, [0, 1], noise=0.05),
        (DENSE, "prototype"): records(DENSE, 0.5, [0, 1], noise=0.05),
    }
    claim = Claim("better", [Contrast((SMAT, "prototype"), (DENSE, "prototype"), "test_ood", margin)])
    assert judge(claim, measured).verdict == expected


def test_one_lost_comparison_loses_a_claim_and_one_that_is_missing_leaves_it_open() -> None:
    accuracies = {"a": 0.6, "b": 0.5, "c": 0.9}
    measured = {(name, "prototype"): records(name, value, [0, 1]) for name, value in accuracies.items()}
    won, lost, missing = (Contrast(("a", "prototype"), (other, "prototype"), "id") for other in "bcd")
    assert judge(Claim("", [won]), measured).verdict == "holds"
    assert judge(Claim("", [won, missing]), measured).verdict is None
    assert judge(Claim("", [won, lost, missing]), measured).verdict == "does not hold"


def test_the_report_says_of_every_claim_what_the_records_say(tmp_path: Path) -> None:
    everything = [*records(BACKBONE, 0.5, [None]), *records(SMAT, 0.6, [0, 1]), *records(DENSE, 0.62, [0, 1])]
    write_records(tmp_path / "prototype", Evaluation(everything))
    run: dict[str, Any] = {"sparsity": [0.7], "merged_sparsity": 0.5, "delta_lr": 0.2, "training_seconds": 90.0}
    run |= {"curve": [(80, 0.7)], "validation_accuracy": 0.5, "dev_ood_accuracy": 0.7}
    trials = {f"search/smat/{rate:g}": run | {"validation_accuracy": rate} for rate in RATES}
    (tmp_path / LEDGER).write_text(json.dumps({"seed-0/smat": run} | trials))
    text = report(tmp_path)
    line = {claim.sentence: next(line for line in text.splitlines() if claim.sentence in line) for claim in CLAIMS}
    assert "| holds " in line["SMAT above the backbone on ID"]
    assert "| does not hold " in line["SMAT at most 1 point below dense on ID"]
    assert "| not measured " in line["teachers help on OOD"]
    row = next(line for line in text.splitlines() if re.match(r"\| SMAT +\|", line))
    assert "0.30" in row
    assert "1.5" in row
    assert "| SMAT | 0.003125: 35.2, 0.0125: 35.6, 0.05: 37.5, **0.2: 45.0** " in text
    assert (tmp_path / "comparison.png").is_file()
    assert json.loads((tmp_path / "comparison.json").read_text())["claims"][0]["verdict"] == "holds"


def test_after_steps_the_report_gives_the_seeds_that_took_them_and_their_rates(tmp_path: Path) -> None:
    everything = [*records(BACKBONE, 0.5, [None]), *records(SMAT, 0.6, [0, 1, 2])]
    write_records(tmp_path / "prototype", Evaluation(everything))
    rates = {None: 1e-6, 0: 0.0, 1: 1e-4}
    after = [
        replace(record, adaptation="full", learning_rate=rates[record.seed])
        for record in everything
        if record.seed in rates
    ]
    write_records(tmp_path / "full", Evaluation(after))
    text = report(tmp_path)
    prototypes, adapted = text.split("### By ")[1:3]
    assert re.search(r"^\| SMAT +\|.*\| +3 \|", prototypes, re.MULTILINE)
    assert adapted.startswith("full adaptation: 5-way 5-shot, 20 episodes a domain")
    assert re.search(r"^\| SMAT +\|.*\| +2 \| +0, 0\.0001 \|$", adapted, re.MULTILINE)
    assert re.search(r"^\| backbone +\|.*\| +\| +1e-06 \|$", adapted, re.MULTILINE)


def test_a_report_in_the_middle_of_a_comparison_goes_by_the_seeds_that_are_there(tmp_path: Path) -> None:
    everything = [*records(BACKBONE, 0.5, [None]), *records(SMAT, 0.6, [0, 1]), *records(DENSE, 0.4, [0])]
    write_records(tmp_path / "prototype", Evaluation([*everything, *records(TAUGHT, 0.4, [2])]))
    lines = report(tmp_path).splitlines()
    assert any("at most 1 point below dense on ID" in line and "] (1) " in line for line in lines)
    judged = json.loads((tmp_path / "comparison.json").read_text())["claims"]
    above = next(each for each in judged if each["claim"].startswith("SMAT above dense"))
    assert [each["baseline"] for each in above["differences"]] == [[DENSE, "prototype"]]
    shutil.rmtree(tmp_path / "prototype")
    full = [replace(record, adaptation="full", learning_rate=0.0) for record in everything]
    write_records(tmp_path / "full", Evaluation(full))
    assert "By full adaptation" in report(tmp_path)


def test_the_density_of_a_part_of_the_backbone_is_told_as_that_of_all_of_it(tmp_path: Path) -> None:
    everything = [*records(BACKBONE, 0.5, [None]), *records("LayerNorm", 0.6, [0]), *records("magnitude", 0.6, [0])]
    write_records(tmp_path / "prototype", Evaluation(everything))
    run: dict[str, Any] = {"delta_lr": 0.2, "training_seconds": 90.0, "curve": [(80, 0.7)]}
    whole, most = {"sparsity": [0.0], "merged_sparsity": 0.0}, {"sparsity": [0.9], "merged_sparsity": 0.9}
    (tmp_path / LEDGER).write_text(
        json.dumps({"seed-0/smat": run | most, "seed-0/layernorm": run | whole, "seed-0/magnitude": run | most})
    )
    text = report(tmp_path)
    assert re.search(r"^\| LayerNorm +\|.*\| +0\.003 \| +0\.003 \|", text, re.MULTILINE)
    assert re.search(r"^\| magnitude +\|.*\| +0\.10 \| +0\.10 \|", text, re.MULTILINE)


def test_the_report_in_docs_is_what_its_records_give(tmp_path: Path) -> None:
    kept = Path(__file__).parents[1] / "docs" / "results"
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    assert report(tmp_path) == (kept / "comparison.md").read_text(encoding="utf-8")


def test_a_level_is_reached_sooner_if_it_is_so_for_the_seeds() -> None:
    def run(row: str, seed: int, *accuracies: float) -> tuple[str, int, dict[str, Any]]:
        return row, seed, {"curve": [(80 * (at + 1), each) for at, each in enumerate(accuracies)]}

    dense = [run(DENSE, 0, 0.6, 0.7, 0.8), run(DENSE, 1, 0.5, 0.8, 0.7)]
    assert reached_sooner([*dense, run(SMAT, 0, 0.7, 0.8, 0.1), run(SMAT, 1, 0.7, 0.7, 0.7)]) == ([80, 80], "holds")
    once = [run(SMAT, 0, 0.8, 0.1, 0.1), run(SMAT, 1, 0.1, 0.7, 0.7)]
    assert reached_sooner([*dense, *once]) == ([160, 0], "undecided")
    assert reached_sooner([*dense, once[0], run(SMAT, 1, 0.1, 0.1, 0.1)]) == ([160, None], "undecided")
    never = [run(SMAT, seed, 0.1, 0.1, 0.1) for seed in (0, 1)]
    assert reached_sooner([*dense, *never]) == ([None, None], "does not hold")
    assert reached_sooner([dense[0], never[0]]) == ([None], "undecided")
    assert reached_sooner(dense) is None


def test_a_look_leaves_records_of_every_domain_and_is_not_taken_twice(tmp_path: Path) -> None:
    look = Look(BACKBONE, None, None, "prototype", 1)
    take_look(look, tmp_path, 1)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    measured = by_row(read_all(tmp_path))
    assert len({record.domain for record in measured[BACKBONE, "prototype"]}) == 15
    assert len(measured) == 2
    take_look(look, tmp_path, 1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == files


def test_records_of_another_suite_are_not_added_to(tmp_path: Path) -> None:
    freeze(tmp_path)
    freeze(tmp_path)
    frozen = json.loads((tmp_path / FROZEN).read_text())
    assert len(frozen) == 17
    (tmp_path / FROZEN).write_text(json.dumps(frozen | {"lao": "0"}))
    with pytest.raises(DataError, match="lao differ from"):
        freeze(tmp_path)


def test_hand_designed_patterns_are_those_that_are_given_a_sparsity() -> None:
    assert {"random experts", "magnitude", "attention", "biases"} <= set(HAND_DESIGNED)
    assert not {SMAT, DENSE, WISE, "LoRA"} & set(HAND_DESIGNED)
    assert set(QUICK_ROWS) <= set(ROWS)


def test_a_claim_is_also_told_without_some_domains_which_its_verdict_does_not_depend_on() -> None:
    ours = records(SMAT, 0.6, [0, 1])
    of_another = [
        replace(each, domain="fabrics", accuracy=each.accuracy - 0.4) for each in ours if each.role == "test_ood"
    ]
    theirs = [*records(DENSE, 0.5, [0, 1]), *(replace(each, predictor=DENSE, accuracy=0.5) for each in of_another)]
    measured = {(SMAT, "prototype"): [*ours, *of_another], (DENSE, "prototype"): theirs}
    contrasts = [Contrast((SMAT, "prototype"), (DENSE, "prototype"), role) for role in ("id", "test_ood")]
    judged = judge(Claim("better", contrasts), measured, ["fabrics"])
    assert judged.verdict == "does not hold"
    assert list(judged.without) == contrasts[1:]
    assert judged.without[contrasts[1]].mean == pytest.approx(0.1, abs=0.02)
    assert judge(Claim("better", contrasts), measured).without == {}


def test_a_look_that_was_cut_is_not_finished_with_another_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(measuring, "evaluate", lambda *_, settings, **__: seen.append(settings))
    for std in (0.1, 0.2):
        model = get_peft_model(load_backbone(DEMO_BACKBONE), SMATConfig(num_experts=2, gate_init_std=std))
        model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
        take_look(Look(DENSE, 0, tmp_path / "adapter", "prototype", 1), tmp_path, 1)
    assert seen[0] != seen[1]
    take_look(Look(BACKBONE, None, None, "prototype", 1), tmp_path, 1)
    assert seen[2] == {}
