"""What is done to a dense delta after training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from smat_peft import SMATConfig
from smat_peft.meta_tuning.shrinking import SHARES, prune_delta_, scale_delta_


@pytest.fixture
def dense(make_vit: Any) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(
        make_vit(), SMATConfig(num_experts=1, sparsity_pattern="dense", target_sparsity=0.0, init_weights=False)
    )


def flat(model: PeftModel) -> Tensor:
    return torch.cat([p.detach().flatten() for name, p in model.named_parameters() if ".smat_delta." in name])


def test_the_share_that_scores_best_is_kept_of_what_was_trained(dense: PeftModel) -> None:
    whole = flat(dense).clone()
    shares: list[float] = []

    def score() -> float:
        shares.append(float((flat(dense) / whole).nanmean()))
        return -abs(shares[-1] - 0.31)

    assert scale_delta_(dense, score) == 0.3
    assert shares == pytest.approx(SHARES, abs=1e-6)
    torch.testing.assert_close(flat(dense), 0.3 * whole)


def test_of_equal_shares_the_smallest_is_taken(dense: PeftModel) -> None:
    assert scale_delta_(dense, lambda: 1.0) == 0
    assert not flat(dense).any()


@pytest.mark.parametrize("density", [0.0, 0.25, 1.0])
def test_pruning_keeps_the_largest_values_over_all_parameters(dense: PeftModel, density: float) -> None:
    whole = flat(dense).clone()
    prune_delta_(dense, density)
    kept = flat(dense) != 0
    assert int(kept.sum()) == round(density * len(whole))
    assert torch.equal(flat(dense)[kept], whole[kept])
    if 0 < density < 1:
        assert whole[kept].abs().min() >= whole[~kept].abs().max()
