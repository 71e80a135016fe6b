"""The best adapter so far: as many of them on disk as a run that goes on may need, and no more."""

from pathlib import Path

import pytest
import torch

from smat_peft.meta_tuning.best import BestAdapter
from smat_peft.meta_tuning.checkpoints import checkpoints, save_checkpoint, step_of

ADAPTER = {"delta": torch.ones(2)}


def steps_of(folder: Path) -> list[int]:
    return [step_of(path) for path in checkpoints(folder)]


@pytest.mark.parametrize(
    ("checkpoint_steps", "needed"),
    [([4, 6], [4, 6]), ([5, 6], [4, 6]), ([6], [6]), ([1, 6], [2, 4, 6]), ([], [6])],
)
def test_only_those_stay_that_were_the_best_at_a_checkpoint_or_later(
    checkpoint_steps: list[int], needed: list[int], tmp_path: Path
) -> None:
    best = BestAdapter(tmp_path)
    for best.step in (2, 4, 6):
        best.save(ADAPTER)
    for step in checkpoint_steps:
        save_checkpoint(tmp_path, step, ADAPTER, {})
    best.prune()
    assert steps_of(best.folder) == needed


def test_those_of_a_try_that_was_given_up_are_dropped(tmp_path: Path) -> None:
    best = BestAdapter(tmp_path)
    for best.step in (2, 4, 6):
        best.save(ADAPTER)
    best.step = 4
    best.drop_later()
    assert steps_of(best.folder) == [2, 4]
    best.step = None
    best.drop_later()
    assert steps_of(best.folder) == []
