"""From class prototypes to expert weights (METHOD 3)."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.distributions import RelaxedBernoulli

from smat_peft.experts.router import (
    SPECTRAL_WEIGHTS,
    ExpertWeights,
    Router,
    even_weights,
    largest_head_count,
    relaxed_bernoulli,
)

WIDTH, EXPERTS, CLASSES = 12, 3, 5


def make_router(seed: int = 0, **changes: Any) -> Router:
    torch.manual_seed(seed)
    return Router(WIDTH, EXPERTS, **changes).eval()


def prototypes(seed: int = 1, classes: int = CLASSES) -> Tensor:
    return torch.randn(classes, WIDTH, generator=torch.Generator().manual_seed(seed))


def uniform(seed: int = 2) -> Tensor:
    return torch.rand(EXPERTS, generator=torch.Generator().manual_seed(seed))


def fields(routed: ExpertWeights) -> tuple[Tensor, Tensor, Tensor]:
    return routed.logits, routed.scores, routed.weights


def same(first: ExpertWeights, second: ExpertWeights) -> bool:
    return all(torch.equal(a, b) for a, b in zip(fields(first), fields(second), strict=True))


def test_the_spectral_norm_divides_by_the_largest_singular_values() -> None:
    router = make_router()
    for _ in range(500):
        router.advance_spectral_norm()
    divided = make_router(spectral_norm=False)
    state = {name: tensor for name, tensor in router.state_dict().items() if name in divided.state_dict()}
    for name in SPECTRAL_WEIGHTS:
        state[f"{name}_weight"] = state[f"{name}_weight"] / torch.linalg.matrix_norm(state[f"{name}_weight"], 2)
    divided.load_state_dict(state)
    torch.testing.assert_close(router.embed(prototypes()), divided.embed(prototypes()))


def test_a_fresh_router_is_normalised_to_a_few_percent() -> None:
    for name in SPECTRAL_WEIGHTS:
        assert torch.linalg.matrix_norm(make_router()._weight(name), 2).item() == pytest.approx(1, abs=0.05)


def test_power_iterations_may_advance_while_a_graph_is_alive() -> None:
    router = make_router().train()
    logits = router(prototypes(), uniform=uniform()).logits
    router.advance_spectral_norm()
    logits.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in router.parameters())


def test_power_iterations_leave_the_vectors_of_unit_length_and_the_parameters_alone() -> None:
    router = make_router()
    before = {name: p.detach().clone() for name, p in router.named_parameters()}
    router.advance_spectral_norm()
    assert all(torch.equal(p, before[name]) for name, p in router.named_parameters())
    for name, vector in router.named_buffers():
        if name != "episodes_seen":
            assert torch.linalg.vector_norm(vector).item() == pytest.approx(1, abs=1e-5)


@given(order=st.permutations(range(CLASSES)))
def test_renumbering_classes_changes_nothing_where_classes_are_averaged(order: list[int]) -> None:
    router = make_router(pooling="mean")
    renumbered = router(prototypes()[order])
    for ours, before in zip(fields(renumbered), fields(router(prototypes())), strict=True):
        torch.testing.assert_close(ours, before, rtol=1e-5, atol=1e-6)


@given(order=st.permutations(range(CLASSES)))
def test_only_the_number_of_the_first_class_matters_where_it_alone_is_read(order: list[int]) -> None:
    router = make_router(pooling="first")
    logits, renumbered = router(prototypes()).logits, router(prototypes()[order]).logits
    assert torch.allclose(logits, renumbered, atol=1e-5) == (order[0] == 0)


def test_there_is_noise_in_training_only() -> None:
    router = make_router()
    assert same(router(prototypes()), router(prototypes(), uniform=uniform()))
    router.train()
    noisy = [router(prototypes(), uniform=uniform(seed)) for seed in (2, 3)]
    assert torch.equal(noisy[0].logits, noisy[1].logits)
    assert not torch.equal(noisy[0].scores, noisy[1].scores)


def test_the_noise_itself_and_the_generator_that_draws_it_give_the_same() -> None:
    router = make_router().train()
    drawn = router(prototypes(), generator=torch.Generator().manual_seed(2))
    assert same(drawn, router(prototypes(), uniform=uniform(2)))


@pytest.mark.parametrize("training", [True, False])
def test_giving_both_the_noise_and_a_generator_is_refused(training: bool) -> None:
    with pytest.raises(ValueError, match="not both"):
        make_router().train(training)(prototypes(), uniform=uniform(), generator=torch.Generator())


def test_weights_sum_to_1_and_follow_the_scores() -> None:
    routed = make_router()(prototypes())
    assert routed.weights.sum().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(routed.weights, routed.scores / routed.scores.sum())
    torch.testing.assert_close(routed.scores, torch.sigmoid(routed.logits / 5.0))


def test_a_single_expert_weighs_what_it_scores() -> None:
    torch.manual_seed(0)
    routed = Router(WIDTH, 1).eval()(prototypes())
    assert torch.equal(routed.weights, routed.scores)


def test_an_even_mix_sums_to_1() -> None:
    assert even_weights(4).weights.tolist() == [0.25] * 4


@pytest.mark.parametrize(("seen", "temperature"), [(0, 5.0), (5, 3.5), (10, 2.0), (1000, 2.0)])
def test_the_temperature_falls_linearly_and_then_stays(seen: int, temperature: float) -> None:
    router = make_router(temperature=(5.0, 2.0), temperature_episodes=10)
    router.episodes_seen.fill_(seen)
    assert router.temperature == pytest.approx(temperature)
    routed = router(prototypes())
    torch.testing.assert_close(routed.scores, torch.sigmoid(routed.logits / temperature))


@given(width=st.integers(1, 100), heads=st.integers(1, 16))
def test_the_largest_number_of_heads_that_divides_the_width_is_taken(width: int, heads: int) -> None:
    count = largest_head_count(width, heads)
    assert width % count == 0
    assert count <= heads
    assert not any(width % larger == 0 for larger in range(count + 1, heads + 1))


@pytest.mark.parametrize("heads", [1, 2, 5, 7, 100])
def test_heads_that_do_not_divide_the_width_still_route(heads: int) -> None:
    routed = make_router(heads=heads)(prototypes())
    assert torch.isfinite(routed.weights).all()


def test_there_may_be_one_class_and_no_skill_token() -> None:
    assert torch.isfinite(make_router(skill_tokens=0)(prototypes(classes=1)).weights).all()


def test_the_block_equals_torchs_own_transformer_layer() -> None:
    router = make_router(spectral_norm=False, pooling="first", heads=2)
    layer = torch.nn.TransformerEncoderLayer(
        WIDTH, 2, 2 * WIDTH, dropout=0.0, activation="gelu", norm_first=True, batch_first=True
    )
    ours = dict(router.named_parameters())
    theirs = {
        "self_attn.in_proj_weight": ours["qkv_weight"],
        "self_attn.in_proj_bias": torch.zeros(3 * WIDTH),
        "self_attn.out_proj.weight": ours["proj_weight"],
        "self_attn.out_proj.bias": ours["proj_bias"],
    }
    for name, part in (("linear1", "fc1"), ("linear2", "fc2"), ("norm1", "norm1"), ("norm2", "norm2")):
        theirs |= {f"{name}.{kind}": ours[f"{part}_{kind}"] for kind in ("weight", "bias")}
    layer.load_state_dict(theirs)
    tokens = torch.cat([prototypes(), router.skill_tokens[0]])
    torch.testing.assert_close(router.embed(prototypes()), layer(tokens[None])[0, 0])


def test_autocast_changes_nothing() -> None:
    router = make_router()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = router(prototypes())
    assert same(inside, router(prototypes()))


def test_resetting_draws_anew_and_forgets_the_episodes() -> None:
    router = make_router()
    keys = router.keys.detach().clone()
    router.episodes_seen.fill_(7)
    router.reset_parameters()
    assert not torch.equal(router.keys, keys)
    assert router.episodes_seen == 0


def test_samples_are_those_of_torchs_relaxed_bernoulli() -> None:
    logits = torch.tensor([-3.0, 0.0, 0.5, 4.0])
    torch.manual_seed(0)
    theirs = RelaxedBernoulli(torch.tensor(0.7), logits=logits).rsample()
    torch.manual_seed(0)
    torch.testing.assert_close(relaxed_bernoulli(logits, torch.rand(4), 0.7), theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.5, 5.0])
def test_samples_stay_strictly_between_0_and_1_at_the_extremes(temperature: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([-1e30, -1e3, 0.0, 1e3, 1e30], dtype=dtype).repeat(3).requires_grad_()
    noise = torch.tensor([0.0, 0.5, 1.0], dtype=dtype).repeat_interleave(5)
    samples = relaxed_bernoulli(logits, noise, temperature)
    assert samples.dtype == dtype
    assert (samples > 0).all()
    assert (samples < 1).all()
    samples.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@torch.no_grad()
def test_low_scores_in_half_precision_still_give_weights() -> None:
    router = make_router().half()
    router.keys[:] = router.keys[0] * 1000
    router.keys *= -router(prototypes().half()).logits.sign()[:, None]
    routed = router(prototypes().half())
    assert (routed.scores == 0).all()
    assert routed.weights.isfinite().all()
