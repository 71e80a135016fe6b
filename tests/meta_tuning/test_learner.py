"""MetaLearner: which passes an update takes, and that nothing but the episodes decides what it computes."""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from smat_peft import SMATConfig
from smat_peft.episodes.episode import Episode
from smat_peft.errors import ConfigurationError
from smat_peft.meta_tuning.arguments import MetaTuningArguments
from smat_peft.meta_tuning.learner import MetaLearner
from smat_peft.tuner.adapters import sparsity
from tests.faults import small_run

noise_episode = partial(small_run.noise_episode, queries=3)
SUPPORT, QUERY = 6, 9  # images in all; different numbers tell the passes apart
TERMS = {"query_ce", "query_kd", "sparsity", "lagrangian", "router_z"}


@pytest.fixture
def make_learner(make_vit: Any) -> Any:
    def make(backbone: nn.Module | None = None, config: dict[str, Any] | None = None, **changes: Any) -> MetaLearner:
        torch.manual_seed(0)
        settings = {"num_experts": 2, "target_sparsity": 0.5, "init_weights": False} | (config or {})
        learner = MetaLearner(
            get_peft_model(backbone or make_vit(), SMATConfig(**settings)),
            MetaTuningArguments(**{"episodes_per_step": 1} | changes),
        )
        with torch.no_grad():
            learner.multipliers.fill_(0.3)
        return learner

    return make


def values(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: term.item() for name, term in terms.items()}


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def passes(learner: MetaLearner) -> tuple[dict[str, Tensor], list[int], Counter[int]]:
    """Terms of an episode, the batch sizes that went through the backbone, and how often back through each."""
    forwards: list[int] = []
    backwards: Counter[int] = Counter()

    def count(_: nn.Module, __: Any, output: Tensor) -> None:
        forwards.append(len(output))
        if output.requires_grad:
            output.register_hook(lambda gradient: backwards.update([len(gradient)]))

    handle = learner.model.base_model.model.layernorm.register_forward_hook(count)
    terms = learner([noise_episode(0)])
    total(terms).backward()
    handle.remove()
    return terms, forwards, backwards


@pytest.mark.parametrize(
    ("changes", "without", "forwards", "support_backwards", "query_backwards"),
    [
        ({}, set(), [SUPPORT + QUERY, SUPPORT, QUERY, QUERY], 2, 2),
        ({"inner_lr": 0.0}, set(), [SUPPORT + QUERY, SUPPORT, QUERY, QUERY], 1, 2),
        ({"distillation_weight": 0.0}, {"query_kd"}, [SUPPORT, SUPPORT, QUERY], 2, 1),
        ({"adapted_teacher_weight": 0.0}, set(), [SUPPORT + QUERY, SUPPORT, QUERY], 2, 1),
        ({"pretrained_teacher_weight": 0.0}, set(), [SUPPORT, SUPPORT, QUERY, QUERY], 2, 2),
        (
            {"adapted_teacher_weight": 0.0, "pretrained_teacher_weight": 0.0},
            {"query_kd"},
            [SUPPORT, SUPPORT, QUERY],
            2,
            1,
        ),
        ({"sparsity_weight": 0.0}, {"sparsity", "lagrangian"}, [SUPPORT + QUERY, SUPPORT, QUERY, QUERY], 2, 2),
        ({"router_z_weight": 0.0}, {"router_z"}, [SUPPORT + QUERY, SUPPORT, QUERY, QUERY], 2, 2),
    ],
)
def test_a_weight_of_0_leaves_out_its_term_and_its_passes(
    make_learner: Any,
    changes: dict[str, float],
    without: set[str],
    forwards: list[int],
    support_backwards: int,
    query_backwards: int,
) -> None:
    terms, found, backwards = passes(make_learner(**changes))
    assert terms.keys() == TERMS - without
    assert found == forwards
    assert backwards == {SUPPORT: support_backwards, QUERY: query_backwards}


@pytest.mark.parametrize("name", ["inner_lr", "adapted_teacher_weight", "pretrained_teacher_weight"])
def test_such_a_weight_counts_while_it_is_not_0(make_learner: Any, name: str) -> None:
    without, small, large = (
        total(make_learner(**{name: value})([noise_episode(0)])).item() for value in (0, 1e-9, 0.5)
    )
    assert small == pytest.approx(without, abs=1e-6)  # nothing else changes with the passes that are left out
    assert large != pytest.approx(without, abs=1e-5)


def test_without_a_sparsity_constraint_the_multipliers_are_not_learned(make_learner: Any) -> None:
    learner = make_learner(sparsity_weight=0.0)
    learner([noise_episode(0)])
    assert not learner.multipliers.requires_grad
    assert learner.multipliers.tolist() == pytest.approx([0.3, 0.3])


def test_how_episodes_are_spread_over_processes_changes_nothing(make_learner: Any) -> None:
    episodes = [noise_episode(index) for index in range(4)]
    alone = make_learner(episodes_per_step=4)
    shares = [copy.deepcopy(alone) for _ in range(2)]
    expected = alone(episodes)
    total(expected).backward()

    found: Counter[str] = Counter()
    for index, learner in enumerate(shares):
        learner.process_index, learner.num_processes = index, 2
        terms = learner(episodes[index::2])
        total(terms).backward()
        found.update(values(terms))

    assert found == pytest.approx(values(expected), rel=1e-6, abs=1e-7)
    gradients = [dict(learner.named_parameters()) for learner in (alone, *shares)]
    learned = [name for name, parameter in gradients[0].items() if parameter.grad is not None]
    assert any("smat_router" in name for name in learned)
    for name in learned:
        one, first, second = (parameters[name].grad for parameters in gradients)
        torch.testing.assert_close(first + second, one, rtol=1e-4, atol=1e-6, msg=name)
    for learner in shares:
        for name, buffer in alone.named_buffers():
            assert torch.equal(learner.get_buffer(name), buffer), name
    assert alone.router.episodes_seen == 4


def test_dropout_does_not_make_an_update_random(make_learner: Any, make_vit: Any) -> None:
    learner = make_learner(make_vit(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5))
    twin = copy.deepcopy(learner)
    torch.manual_seed(1)
    first = learner([noise_episode(0)])
    torch.manual_seed(2)
    assert values(twin([noise_episode(0)])) == values(first)


def test_activations_are_recomputed_where_that_is_asked_for(make_learner: Any, make_vit: Any) -> None:
    expected = make_learner()([noise_episode(0)])
    backbone = make_vit(attention_probs_dropout_prob=0.5)
    backbone.activation_checkpointing_enable()
    learner = make_learner(backbone)
    calls: list[int] = []
    backbone.layers[0].mlp.fc1.register_forward_hook(lambda *_: calls.append(1))
    terms = learner([noise_episode(0)])
    assert len(calls) == 4 + 4  # as many again as without, for two backward passes of support and of query
    assert values(terms) == pytest.approx(values(expected))


def gradients(learner: MetaLearner, episodes: list[Episode]) -> dict[str, Tensor]:
    total(learner(episodes)).backward()
    return {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_chunks_change_no_gradient(make_learner: Any, make_vit: Any, checkpointing: bool) -> None:
    expected = gradients(make_learner(), [noise_episode(0)])
    backbone = make_vit()
    if checkpointing:
        backbone.activation_checkpointing_enable()
    chunked = make_learner(backbone, max_batch_size=2)
    sizes: list[int] = []
    backbone.layernorm.register_forward_hook(lambda _, __, output: sizes.append(len(output)))
    assert_same_gradients(gradients(chunked, [noise_episode(0)]), expected)
    assert set(sizes) == {1, 2}  # 15, 6 and 9 images in twos


def test_how_many_episodes_share_a_merge_changes_no_gradient(make_learner: Any) -> None:
    episodes = [noise_episode(index) for index in range(4)]
    expected = gradients(make_learner(episodes_per_step=4), episodes)
    for size in (1, 3):
        assert_same_gradients(gradients(make_learner(episodes_per_step=4, episodes_per_merge=size), episodes), expected)


def test_an_episode_s_graph_is_gone_before_the_next_one_is_built(make_learner: Any) -> None:
    learner = make_learner(episodes_per_step=3)
    alive, counts = weakref.WeakSet[Tensor](), []

    def count(_: nn.Module, __: Any, output: Tensor) -> None:
        if output.requires_grad:
            alive.add(output)
        counts.append(len(alive))

    learner.model.base_model.model.layers[0].register_forward_hook(count)
    learner([noise_episode(index) for index in range(3)])
    assert max(counts) == 2  # support and query of one episode


def test_a_gradient_scaler_s_factor_changes_no_gradient(make_learner: Any) -> None:
    expected = gradients(make_learner(), [noise_episode(0)])
    scaled = make_learner()
    scaled.loss_scale = 2.0**12
    assert_same_gradients(gradients(scaled, [noise_episode(0)]), expected)


def test_batch_norms_keep_their_statistics(make_learner: Any) -> None:
    torch.manual_seed(0)
    resnet = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic"))
    learner = make_learner(resnet)
    norms = {name: buffer.clone() for name, buffer in learner.named_buffers() if "running" in name}
    assert norms
    learner.train()([noise_episode(0)])
    for name, buffer in norms.items():
        assert torch.equal(learner.get_buffer(name), buffer), name


def test_the_router_s_noise_depends_on_seed_and_episode_alone(make_learner: Any) -> None:
    steady = {"router_spectral_norm": False, "router_temperature": (1.0, 1.0)}  # nothing then changes between episodes

    def weights(learner: MetaLearner, *indices: int) -> Tensor:
        learner([noise_episode(index) for index in indices])
        return learner.statistics["expert_weights"]

    learner = make_learner(config=steady, episodes_per_step=1)
    alone = weights(learner, 5)
    torch.manual_seed(9)
    together = weights(learner, 4, 5)
    assert torch.equal(weights(learner, 5), alone)
    torch.testing.assert_close(together * 2 - weights(learner, 4), alone)
    assert not torch.allclose(weights(make_learner(config=steady, seed=1), 5), alone, atol=1e-3)
    assert not torch.allclose(weights(learner, 4), alone, atol=1e-3)


def test_statistics_are_means_over_the_episodes(make_learner: Any) -> None:
    learner = make_learner(episodes_per_step=2)
    shares = []
    for index in range(2):
        twin = copy.deepcopy(learner)
        twin.process_index, twin.num_processes = index, 2
        twin([noise_episode(index)])
        shares.append(twin.statistics)
    learner([noise_episode(0), noise_episode(1)])
    assert learner.statistics.keys() == {"accuracy", "expert_weights", "sparsity"}
    for name, figure in learner.statistics.items():
        torch.testing.assert_close(figure, (shares[0][name] + shares[1][name]) / 2)
        assert not figure.requires_grad
    assert learner.statistics["sparsity"] == pytest.approx(sparsity(learner.model, training=True).mean().item())
    assert learner.statistics["expert_weights"].sum().item() == pytest.approx(1)


def test_validation_leaves_the_learner_as_it_was(make_learner: Any) -> None:
    learner = make_learner()
    modes = [module.training for module in learner.modules()]
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    terms = copy.deepcopy(learner)([noise_episode(1)])
    assert 0 <= learner.validate(noise_episode(0)) <= 1
    assert [module.training for module in learner.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.state_dict().items())
    after = learner([noise_episode(1)])
    assert values(after) == values(terms)


def test_a_backbone_in_double_precision_learns_in_it(make_learner: Any, make_vit: Any) -> None:
    learner = make_learner(make_vit().double())
    episode = noise_episode(0)
    doubled = Episode(episode.support.double(), episode.support_labels, episode.query.double(), episode.query_labels)
    expected = make_learner()([episode])
    for name, term in learner([doubled]).items():
        torch.testing.assert_close(term.float(), expected[name], rtol=1e-4, atol=1e-5)


def test_an_adapter_whose_weights_are_frozen_is_refused(make_vit: Any, tmp_path: Path) -> None:
    get_peft_model(make_vit(), SMATConfig(num_experts=2)).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_vit(), tmp_path)
    with pytest.raises(ConfigurationError, match="are frozen, so that only its router would learn: load it with is_tr"):
        MetaLearner(loaded, MetaTuningArguments())
    MetaLearner(PeftModel.from_pretrained(make_vit(), tmp_path, is_trainable=True), MetaTuningArguments())
