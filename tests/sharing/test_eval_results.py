"""Evaluation results in the Hub's own format."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResultEntry, parse_eval_result_entries
from huggingface_hub.utils import validate_repo_id

from smat_peft.sharing.eval_results import write_eval_results


def accuracy(mean: float, half_width: float | None = 0.0123) -> dict[str, Any]:
    return {"mean": mean, "half_width": half_width, "count": 600}


def entries(path: Path) -> list[EvalResultEntry]:
    found = parse_eval_result_entries(yaml.safe_load(path.read_text(encoding="utf-8")))
    for entry in found:
        validate_repo_id(entry.dataset_id)
    return found


@pytest.mark.parametrize(
    ("origin", "data_set", "task"),
    [
        ("hub:uoft-cs/cifar100:cifar100@train+test", "uoft-cs/cifar100", "cifar100"),
        ("hub:mnist@test", "mnist", "default"),
        ("builtin:greek", "smat-peft/builtin", "greek"),
    ],
)
def test_a_data_set_of_the_hub_and_the_built_in_suite_get_an_entry(
    tmp_path: Path, origin: str, data_set: str, task: str
) -> None:
    (path,) = write_eval_results(tmp_path, {"letters": accuracy(0.71234)}, {"letters": origin})
    assert path == tmp_path / ".eval_results" / "letters.yaml"
    notes = "mean query accuracy of 600 few-shot episodes, ± 0.0123 (95 % interval)"
    assert entries(path) == [EvalResultEntry(data_set, task, 0.7123, notes=notes)]


def test_without_an_interval_none_is_told(tmp_path: Path) -> None:
    (path,) = write_eval_results(tmp_path, {"greek": accuracy(0.5, None)}, {"greek": "builtin:greek"})
    assert entries(path)[0].notes == "mean query accuracy of 600 few-shot episodes"


@pytest.mark.parametrize("origin", ["", "folder:/home/me/birds", "/home/me/birds", "disk:birds", "parquet:b.parquet"])
def test_images_of_one_s_own_are_left_out(tmp_path: Path, origin: str) -> None:
    assert write_eval_results(tmp_path, {"birds": accuracy(0.5)}, {"birds": origin}) == []
    assert list(tmp_path.iterdir()) == []


def test_a_domain_s_name_makes_no_other_folder(tmp_path: Path) -> None:
    (path,) = write_eval_results(tmp_path, {"a/../b:c@d": accuracy(0.5)}, {"a/../b:c@d": "hub:someone/b:c@d"})
    assert path.parent == tmp_path / ".eval_results"
    assert path.name == "a-..-b-c-d.yaml"
