from typing import Any

import pytest
import torch

from smat_peft.episodes.episode import Episode
from smat_peft.errors import DataError


def make_episode(support_labels: list[int], query_labels: list[int], **changes: Any) -> Episode:
    tensors = {
        "support": torch.zeros(len(support_labels), 3, 2, 2),
        "support_labels": torch.tensor(support_labels),
        "query": torch.zeros(len(query_labels), 3, 2, 2),
        "query_labels": torch.tensor(query_labels),
    }
    return Episode(**tensors | changes)


def test_an_episode_counts_its_classes_in_any_order_of_the_labels() -> None:
    assert make_episode([2, 0, 1, 1], [0, 0]).ways == 3


def test_an_episode_without_query_can_be_made() -> None:
    assert len(make_episode([0, 1], []).query) == 0


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_moving_an_episode_moves_its_tensors_and_keeps_the_rest(device: str) -> None:
    episode = make_episode([0, 1], [1], domain="greek", index=7)
    moved = episode.to(device)
    assert (moved.domain, moved.index) == ("greek", 7)
    for name in ("support", "support_labels", "query", "query_labels"):
        assert getattr(moved, name).device.type == device
        assert torch.equal(getattr(moved, name).cpu(), getattr(episode, name))


@pytest.mark.parametrize(
    ("support_labels", "query_labels", "changes", "message"),
    [
        ([0, 0], [0], {}, "single class"),
        ([0, 2], [0], {}, "without gaps"),
        ([1, 2], [1], {}, "without gaps"),
        ([0, 1], [0, 3, 2], {}, r"query labels \[2, 3\]"),
        ([0, 1], [0], {"support": torch.zeros(3, 3, 2, 2)}, "support: 3 images but 2 labels"),
        ([0, 1], [0], {"query": torch.zeros(2, 3, 2, 2)}, "query: 2 images but 1 labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    support_labels: list[int], query_labels: list[int], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make_episode(support_labels, query_labels, **changes)
