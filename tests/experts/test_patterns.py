"""Gates that are not learned."""

import pytest
import torch

from smat_peft.experts.gates import EVAL_TEMPERATURE, TRAIN_TEMPERATURE, gate_shape, gate_values
from smat_peft.experts.patterns import PATTERNS, pattern_logits


def opened(name: str, base: torch.Tensor, density: float, shape: torch.Size | None = None) -> torch.Tensor:
    gates = pattern_logits(name, base, 3, density, base.shape if shape is None else shape)
    values = gate_values(gates, TRAIN_TEMPERATURE)
    assert torch.equal(values, gate_values(gates, EVAL_TEMPERATURE))
    assert set(values.unique().tolist()) <= {0.0, 1.0}
    return values.bool()


def test_a_dense_pattern_opens_every_gate_of_every_expert_whatever_the_density() -> None:
    is_open = opened("dense", torch.randn(4, 5), density=0.1)
    assert is_open.shape == (3, 4, 5)
    assert is_open.all()


def test_a_random_pattern_opens_about_its_share_and_another_one_in_each_expert() -> None:
    torch.manual_seed(0)
    is_open = opened("random", torch.randn(100, 200), density=0.2)
    assert is_open.float().mean((1, 2)).tolist() == pytest.approx([0.2] * 3, abs=0.01)
    assert not torch.equal(is_open[0], is_open[1])


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_a_magnitude_pattern_opens_the_largest_weights_in_every_expert(density: float) -> None:
    base = torch.randn(4, 5)
    is_open = opened("magnitude", base, density)
    assert torch.equal(is_open[0], is_open[1])
    assert is_open.flatten(1).sum(1).tolist() == [round(20 * density)] * 3
    closed, chosen = base.abs()[~is_open[0]], base.abs()[is_open[0]]
    assert not len(closed) or not len(chosen) or chosen.min() >= closed.max()


def test_a_structured_magnitude_pattern_opens_the_columns_with_the_largest_sums() -> None:
    base = torch.tensor([[0.0, -3.0, 1.0, 1.0], [0.0, 0.0, -1.0, 3.0]])
    is_open = opened("magnitude", base, 0.5, gate_shape(base.shape, "structured"))
    assert is_open[0].tolist() == [[False, True, False, True]]


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3, 2, 2)])
def test_every_pattern_covers_parameters_of_any_shape(name: str, shape: tuple[int, ...]) -> None:
    assert opened(name, torch.randn(shape), density=0.5).shape == (3, *shape)


def test_a_half_precision_parameter_gets_float32_gates() -> None:
    base = torch.randn(4, 5, dtype=torch.bfloat16)
    assert pattern_logits("magnitude", base, 2, 0.5, base.shape).dtype == torch.float32
