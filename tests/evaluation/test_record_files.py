"""Records on disk: what comes back, how large it is, and what is refused."""

import dataclasses
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from smat_peft.errors import CheckpointError
from smat_peft.evaluation.calibration import Calibration, Reliability
from smat_peft.evaluation.record_files import read_records, record_file, write_records
from smat_peft.evaluation.records import Evaluation, Record


def evaluation_of(predictors=("backbone", "SMAT"), domains=3, episodes=4):
    random = np.random.default_rng(0)
    records = [
        Record(
            predictor,
            f"domain {domain}",
            "id" if domain % 2 else "test_ood",
            index,
            5,
            5,
            25,
            random.integers(26) / 25,
            expert_weights=tuple(random.dirichlet([30] * 4)) if predictor == "SMAT" else None,
            log_loss=random.uniform(0, 2),
            calibrated_log_loss=random.uniform(0, 2),
            seed=7,
            adaptation="lora",
            learning_rate=1e-4,
        )
        for domain in range(domains)
        for index in range(episodes)
        for predictor in predictors
    ]
    calibration = {
        (predictor, f"domain {domain}"): Calibration(
            Reliability(random.uniform(0, 999, (3, 10))), Reliability(random.uniform(0, 999, (3, 10)))
        )
        for domain in range(domains)
        for predictor in predictors
    }
    return Evaluation(records, calibration, dict.fromkeys(predictors, 1.25), {"episodes": episodes, "ways": None})


def test_what_is_written_comes_back(tmp_path):
    evaluation = evaluation_of()
    paths = write_records(tmp_path, evaluation)
    assert [path.name for path in paths] == ["backbone-lora-seed7.parquet", "SMAT-lora-seed7.parquet"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    found = read_records(paths)
    expected = sorted(evaluation.records, key=lambda record: record.predictor != "backbone")
    for ours, theirs in zip(found.records, expected, strict=True):
        weights, wanted = ours.expert_weights, theirs.expert_weights
        assert weights == (None if wanted is None else pytest.approx(wanted, abs=1e-6))
        assert dataclasses.asdict(dataclasses.replace(ours, expert_weights=None)) == pytest.approx(
            dataclasses.asdict(dataclasses.replace(theirs, expert_weights=None)), abs=1e-6
        )
    assert found.temperatures == evaluation.temperatures
    assert found.settings == evaluation.settings
    assert found.calibration.keys() == evaluation.calibration.keys()
    for key, value in evaluation.calibration.items():
        np.testing.assert_allclose(found.calibration[key].before.bins, value.before.bins, atol=1e-5)
        np.testing.assert_allclose(found.calibration[key].after.bins, value.after.bins, atol=1e-5)


def test_a_folder_is_read_whole_and_one_file_alone(tmp_path):
    write_records(tmp_path, evaluation_of())
    assert read_records(tmp_path).predictors == ["SMAT", "backbone"]
    assert read_records(record_file(tmp_path, "SMAT", 7, "lora")).predictors == ["SMAT"]


def test_what_was_not_measured_stays_away(tmp_path):
    evaluation = Evaluation([Record("backbone", "a", "id", 0, 5, 5, 25, 0.5)])
    (path,) = write_records(tmp_path, evaluation)
    assert path.name == "backbone-prototype.parquet"
    (record,) = read_records(path).records
    assert (record.seed, record.learning_rate, record.expert_weights) == (None, None, None)
    assert np.isnan(record.log_loss)
    assert read_records(path).temperatures == {}


def test_300_episodes_of_20_domains_take_less_than_150_kilobytes(tmp_path):
    *_, path = write_records(tmp_path, evaluation_of(domains=20, episodes=300))
    assert path.name == "SMAT-lora-seed7.parquet"
    assert path.stat().st_size < 150_000


def test_others_read_the_files_with_datasets_or_arrow(tmp_path):
    paths = write_records(tmp_path / "records", evaluation_of())
    table = load_dataset("parquet", data_files=[str(path) for path in paths], cache_dir=str(tmp_path), split="train")
    assert table.num_rows == 24
    assert set(table["predictor"]) == {"backbone", "SMAT"}


def test_predictors_that_would_share_a_file_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="would share the file even-mix-lora-seed7"):
        write_records(tmp_path, evaluation_of(("even mix", "even-mix")))
    assert not list(tmp_path.glob("*.parquet"))


def test_a_folder_that_cannot_be_written_to_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        write_records(tmp_path / "file", evaluation_of())


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def of_another_kind(path):
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["accuracy"]), path)


@pytest.mark.parametrize("damage", [cut, of_another_kind, os.remove], ids=lambda damage: damage.__name__)
def test_a_file_that_is_no_records_is_one_clear_error(tmp_path, damage):
    path, *_ = write_records(tmp_path, evaluation_of())
    damage(path)
    with pytest.raises(CheckpointError, match=r"backbone-lora-seed7.parquet is no whole file of records"):
        read_records(path)


def test_an_empty_folder_is_one_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="no files of records"):
        read_records(tmp_path)
