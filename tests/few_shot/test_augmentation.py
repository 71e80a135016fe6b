"""DiffAugment equals the authors' numbers draw for draw, and leaves alone what it should."""

import pytest
import torch

from smat_peft.few_shot.augmentation import DiffAugment
from tests.golden_state import numbers

GOLDEN = numbers("authors/diffaug")  # of each result every fourth row and column
PIXELS = GOLDEN["x"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("brighten", "rand_brightness"),
        ("saturate", "rand_saturation"),
        ("contrast", "rand_contrast"),
        ("shift", "rand_translation"),
    ],
)
def test_a_change_equals_the_golden_one(change, name):
    changed = getattr(DiffAugment(3), change)(PIXELS)
    torch.testing.assert_close(changed[:, :, ::4, ::4], GOLDEN[f"op/{name}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_all_changes_together_equal_the_golden_ones(seed):
    changed = DiffAugment(seed)(PIXELS)
    torch.testing.assert_close(changed[:, :, ::4, ::4], GOLDEN[f"diffaug/seed{seed}"], rtol=0, atol=1e-6)


def test_a_call_in_ten_changes_nothing_and_half_of_the_others_mirror():
    augment = DiffAugment(0)
    for change in ("brighten", "saturate", "contrast", "shift"):
        setattr(augment, change, lambda images: images.clone())
    left_to_right = torch.arange(8.0).expand(1, 3, 8, 8)
    results = [augment(left_to_right) for _ in range(1000)]
    unchanged = sum(result is left_to_right for result in results)
    mirrored = sum(bool(result[0, 0, 0, 0] == 7) for result in results)
    assert 70 < unchanged < 130
    assert 400 < mirrored < 500


def test_what_a_shift_brings_in_from_outside_is_zero():
    shifted = DiffAugment(0).shift(torch.ones(50, 3, 16, 24))
    assert shifted.shape == (50, 3, 16, 24)
    covered = shifted[:, 0].amax(2), shifted[:, 0].amax(1)
    missing = [16 - covered[0].sum(1), 24 - covered[1].sum(1)]
    assert missing[0].max() == 2  # an eighth of each side, at most
    assert missing[1].max() == 3
    assert set(shifted.unique().tolist()) == {0.0, 1.0}


def test_the_images_given_are_not_changed():
    before = PIXELS.clone()
    DiffAugment(0)(PIXELS)
    assert torch.equal(PIXELS, before)
