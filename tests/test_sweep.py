"""The sweep over sparsity and experts: runs of its own, done once; the table; what the pictures show of it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import sweep
from smat_peft.assets import DEMO_RECIPE
from smat_peft.errors import CheckpointError, ConfigurationError, DataError
from smat_peft.evaluation.analysis.sweep import SweepCell, best_rates, read_sweep, write_sweep

CELL = SweepCell(0.5, 2, 0.05, 0, 0.7, 0.71, 0.01, 0.72, 0.01, 0.4, 0.2, 60.0)


def test_every_cell_is_run_once_with_its_settings_before_the_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # it is set for the runs, and is as it was when the test ends
    small = {"max_steps": 1, "episodes_per_step": 1, "max_support": 20, "validation_episodes": 1}
    recipe = yaml.safe_load(DEMO_RECIPE.read_text()) | small | {"validation_steps": 1, "checkpointing_steps": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    places = {"--recipes": "recipe.yaml", "--runs_dir": "runs", "--results": "sweep.csv"}
    words = [word for name, place in places.items() for word in (name, str(tmp_path / place))]
    words += ["--jobs", "2", "--sparsities", "0.5", "--experts", "1", "--rates", "0.1", "0.2"]
    words += ["--evaluation_episodes", "2"]
    sweep.main(words)
    cells = read_sweep(tmp_path / "sweep.csv")
    assert [(cell.target_sparsity, cell.num_experts, cell.delta_lr) for cell in cells] == [(0.5, 1, 0.1), (0.5, 1, 0.2)]
    assert all(0 < cell.id_accuracy < 1 and 0 < cell.dev_ood_accuracy < 1 for cell in cells)
    logs = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.log")}
    assert len(logs) == 2
    assert not list((tmp_path / "runs").rglob("checkpoint-*"))
    sweep.main(words)
    assert "2 of 2 runs are done, 0 left" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.log")} == logs
    with pytest.raises(ConfigurationError, match=r"sweep.yaml has evaluation_episodes 2, not 3. Give --results"):
        sweep.main([*words, "--evaluation_episodes", "3"])
    (tmp_path / "more.yaml").write_text("distillation_weight: 0.5")
    recipes = ["--recipes", str(tmp_path / "recipe.yaml"), str(tmp_path / "more.yaml")]
    with pytest.raises(ConfigurationError, match=r"sweep.yaml has distillation_weight None, not 0.5"):
        sweep.main([*words, *recipes])
    (tmp_path / "sweep.yaml").write_text((tmp_path / "sweep.yaml").read_text() + "distillation_weight: 0.5")
    with pytest.raises(ConfigurationError, match=r"sweep.yaml has distillation_weight 0.5, not None"):
        sweep.main(words)
    (tmp_path / "sweep.yaml").unlink()
    with pytest.raises(ConfigurationError, match=r"runs.*recipe.yaml has evaluation_episodes 2, not 3"):
        sweep.main([*words, "--evaluation_episodes", "3"])
    shutil.rmtree(tmp_path / "runs")
    sweep.main([*words, "--rates", "0.1"])
    assert "1 of 1 runs are done, 0 left" in capsys.readouterr().out
    assert not list(tmp_path.rglob("run.log"))
    assert read_sweep(tmp_path / "sweep.csv") == cells


@pytest.mark.usefixtures("threads_for_processes")
def test_no_cell_looks_at_domains_that_are_kept_for_a_final_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def run(folder: Path, settings: dict[str, Any], threads: int) -> bool:
        seen.append(settings["ood_domains"])
        return False

    monkeypatch.setattr(sweep, "run_in", run)
    with pytest.raises(CheckpointError, match="4 runs failed"):
        sweep.main(["--quick", "--runs_dir", str(tmp_path)])
    assert seen == [[]] * 4


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    other = dataclasses.replace(CELL, num_experts=1)
    write_sweep([CELL, other], tmp_path / "sweep.csv")
    assert read_sweep(tmp_path / "sweep.csv") == [other, CELL]
    (tmp_path / "sweep.csv").write_text("target_sparsity\n")
    with pytest.raises(DataError, match="holds no finished run"):
        read_sweep(tmp_path / "sweep.csv")


def test_of_the_rates_of_a_cell_the_one_that_validates_best_is_shown() -> None:
    better = dataclasses.replace(CELL, delta_lr=0.2, validation_score=0.8, dev_ood_accuracy=0.1)
    of_another_seed = dataclasses.replace(CELL, seed=1)
    assert set(best_rates([better, CELL, of_another_seed])) == {of_another_seed, better}
