"""Adapting to a support set: the golden numbers, every backbone, and a model that never changes."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import ViTConfig, ViTModel
from transformers.models.levit.modeling_levit import LevitAttention, LevitAttentionSubsample

from smat_peft import SMATConfig
from smat_peft.errors import ConfigurationError, DataError
from smat_peft.few_shot import Adaptation, adapt_to_support, classify_queries, fine_tuning
from smat_peft.few_shot.adaptation import classify_episode
from smat_peft.tuner import tasks
from tests.golden_state import RUN, distance, episode, golden_model, numbers, section
from tests.small_models import make_levit
from tests.tuner.backbones import BACKBONES, task_images

CLEAN = {"augment": False, "lora_dropout": 0.0}
WITHOUT_ATTENTION = ("convnext", "resnet", "plain")


def logits_of(model, support, labels, queries, adaptation, **settings):
    task = adapt_to_support(model, support, labels, adaptation=adaptation, **settings)
    return classify_queries(model, task, queries)


@pytest.fixture
def lora_from_golden(monkeypatch):
    """LoRA starts from the authors' first weights."""
    golden = section(numbers("authors/finetune_lora_hf"), "lora_init")
    first = {
        name.removeprefix("base_model.model.encoder.").replace(".default.", ".task."): tensor
        for name, tensor in golden.items()
    }
    inject = fine_tuning.inject_lora

    def inject_golden(backbone, dropout):
        inject(backbone, dropout)
        assert not backbone.load_state_dict(first, strict=False).unexpected_keys

    monkeypatch.setattr(fine_tuning, "inject_lora", inject_golden)


@pytest.mark.parametrize("batch_size", [64, 7])
@pytest.mark.parametrize("steps", range(4))
def test_full_fine_tuning_equals_the_golden_logits(steps, batch_size):
    model, task, golden = golden_model("first").eval(), episode(1), numbers("finetune_full")
    adaptation = Adaptation("full", steps=steps, learning_rate=1e-3, augment=False)
    logits = logits_of(model, task.support, task.support_labels, task.query, adaptation, batch_size=batch_size)
    assert distance(logits, golden[f"query_logits/{steps}"]) < 1e-4


@pytest.mark.parametrize("batch_size", [64, 7])
@pytest.mark.parametrize("steps", range(4))
def test_lora_fine_tuning_equals_the_authors_logits(lora_from_golden, steps, batch_size):
    task, golden = numbers("authors/lora_task"), numbers("authors/finetune_lora_hf")
    vit = ViTModel(ViTConfig(**RUN["config"]["vit"]), add_pooling_layer=False).eval()
    vit.load_state_dict(section(task, "weights"))  # merged; the authors' logits without LoRA are their check
    adaptation = Adaptation("lora", steps=steps, learning_rate=1e-2, **CLEAN)
    logits = logits_of(vit, task["support"], task["support_labels"], task["query"], adaptation, batch_size=batch_size)
    assert distance(logits, golden[f"query_logits/{steps + 1}"]) < 1e-4
    if steps == 0:
        assert distance(logits, golden["zero_shot"]) < 1e-4


def test_fine_tuning_starts_from_the_merged_experts(smat_vit):
    support, labels = task_images(0)
    queries, _ = task_images(1)
    merged = adapt_to_support(smat_vit, support, labels)
    for kind in ("full", "lora"):
        task = adapt_to_support(smat_vit, support, labels, adaptation=Adaptation(kind, steps=1, learning_rate=1e-9))
        assert torch.equal(task.expert_weights, merged.expert_weights)
        torch.testing.assert_close(
            classify_queries(smat_vit, task, queries), classify_queries(smat_vit, merged, queries), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_fine_tuning_learns_the_support(smat_vit, kind):
    support, _ = task_images(0, classes=4, shots=4)
    labels = torch.randperm(16, generator=torch.Generator().manual_seed(0)) % 4  # prototypes alone cannot
    before = logits_of(smat_vit, support, labels, support, Adaptation("prototype"))
    after = logits_of(smat_vit, support, labels, support, Adaptation(kind, learning_rate=1e-2, augment=False))
    loss = nn.functional.cross_entropy
    assert loss(after, labels) < loss(before, labels) - 0.5


@given(
    shots=st.lists(st.integers(1, 3), min_size=2, max_size=4),
    kind=st.sampled_from(["prototype", "full", "lora"]),
    steps=st.integers(1, 5),
    draw=st.randoms(use_true_random=False),
)
@settings(max_examples=25)
def test_renumbering_classes_and_reordering_the_support_change_nothing(shots, kind, steps, draw):
    model = BACKBONES["vit"].adapted(dtype=torch.float64)
    labels = torch.arange(len(shots)).repeat_interleave(torch.tensor(shots))
    support, _ = task_images(0, classes=len(labels), shots=1)
    queries, _ = task_images(1)
    adaptation = Adaptation(kind, steps=steps, learning_rate=1e-3, **CLEAN)
    before = logits_of(model, support.double(), labels, queries.double(), adaptation)
    new_number = torch.tensor(draw.sample(range(len(shots)), len(shots)))
    order = torch.tensor(draw.sample(range(len(labels)), len(labels)))
    after = logits_of(model, support.double()[order], new_number[labels[order]], queries.double(), adaptation)
    assert (after[:, new_number] - before).abs().max() <= 1e-4


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "experts"])
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_can_be_fine_tuned_or_says_why_not(name, kind, adapted):
    backbone = BACKBONES[name]
    model = backbone.adapted() if adapted else backbone.base()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    support, labels = task_images(0)
    queries, _ = task_images(1)
    adaptation = Adaptation(kind, steps=2, learning_rate=1e-2)
    if kind == "lora" and name in WITHOUT_ATTENTION:
        with pytest.raises(ConfigurationError, match=r"LoRA needs linear layers called .* has none"):
            adapt_to_support(model, support, labels, adaptation=adaptation)
        return
    plain = logits_of(model, support, labels, queries, Adaptation("prototype"))
    tuned = logits_of(model, support, labels, queries, adaptation)
    assert (tuned - plain).abs().max() > 1e-3
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("batch_size", [64, 2])
def test_what_a_module_keeps_of_its_parameters_is_forgotten_at_each_step(monkeypatch, batch_size):
    torch.manual_seed(0)
    model = make_levit().double()  # AdamW makes much of the rounding of small gradients
    support, queries = torch.randn(2, 6, 3, 32, 32, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    adaptation = Adaptation("full", steps=3, learning_rate=1e-2, augment=False)
    tuned = logits_of(model, support, labels, queries, adaptation, batch_size=batch_size)
    for kind in (LevitAttention, LevitAttentionSubsample):
        monkeypatch.setattr(
            kind, "get_attention_biases", lambda self, device: self.attention_biases[:, self.attention_bias_idxs]
        )
    expected = logits_of(model, support, labels, queries, adaptation, batch_size=64)
    assert (tuned - expected).abs().max() < 1e-4
    assert (tuned - logits_of(model, support, labels, queries, Adaptation())).abs().max() > 1e-2


def snapshot(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training = {name: module.training for name, module in model.named_modules()}
    gradients = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    return state, training, gradients, attributes


def assert_same(before, after):
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("fails", [False, True], ids=["to the end", "raising"])
@pytest.mark.parametrize("kind", ["prototype", "full", "lora"])
@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "experts"])
def test_the_model_comes_back_to_the_bit(smat_vit, make_vit, monkeypatch, adapted, kind, fails):
    model = smat_vit if adapted else make_vit()
    support, labels = task_images(0)
    if adapted:
        tasks.adapt(model, *task_images(1))  # a task of the user's own
    model.train()
    layer = next(module for name, module in model.named_modules() if name.endswith("layernorm"))
    layer.eval()
    before, features = snapshot(model), tasks.features(model, support).detach()
    random = torch.random.get_rng_state()
    if fails:
        name = "adaptation.class_means" if kind == "prototype" else "fine_tuning.cosine_logits"

        def fail(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(f"smat_peft.few_shot.{name}", fail)
        with pytest.raises(KeyboardInterrupt):
            adapt_to_support(model, support, labels, adaptation=Adaptation(kind, steps=2))
    else:
        task = adapt_to_support(model, support, labels, adaptation=Adaptation(kind, steps=2))
        classify_queries(model, task, support)
    assert_same(before, snapshot(model))
    assert torch.equal(tasks.features(model, support), features)
    assert torch.equal(torch.random.get_rng_state(), random)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_same_seed_gives_the_same_logits_and_another_does_not(smat_vit, kind):
    support, labels = task_images(0)
    results = []
    for seed in (0, 0, 1):
        torch.rand(1)  # it does not matter what else draws
        adaptation = Adaptation(kind, steps=3, learning_rate=1e-2, seed=seed)
        results.append(logits_of(smat_vit, support, labels, support, adaptation))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_lora_s_dropout_is_for_fine_tuning_and_not_for_predictions(smat_vit):
    support, labels = task_images(0)
    without, task = (
        adapt_to_support(
            smat_vit,
            support,
            labels,
            adaptation=Adaptation("lora", steps=2, learning_rate=1e-2, augment=False, lora_dropout=dropout),
        )
        for dropout in (0.0, 0.5)
    )
    logits = classify_queries(smat_vit, task, support)
    assert torch.equal(logits, classify_queries(smat_vit, task, support))
    assert not torch.equal(logits, classify_queries(smat_vit, without, support))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_support_in_parts_is_the_same_with_augmentation_and_without(smat_vit, kind):
    support, labels = task_images(0, classes=3, shots=3)
    for augment in (False, True):
        adaptation = Adaptation(kind, steps=3, learning_rate=1e-4, augment=augment, lora_dropout=0.0)
        whole, parts = (
            logits_of(smat_vit.double(), support.double(), labels, support.double(), adaptation, batch_size=size)
            for size in (64, 2)
        )
        torch.testing.assert_close(whole, parts, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_half_precision_is_fine_tuned_in_single_and_stays_half(make_vit, kind):
    half = make_vit().bfloat16()
    single = copy.deepcopy(half).float()
    support, labels = task_images(0)
    adaptation = Adaptation(kind, steps=3, learning_rate=1e-3)
    tasks_ = [adapt_to_support(model, support, labels, adaptation=adaptation) for model in (half, single)]
    assert tasks_[0].weights.keys() == tasks_[1].weights.keys()
    for name, weight in tasks_[0].weights.items():
        assert torch.equal(weight, tasks_[1].weights[name].bfloat16())
    assert classify_queries(half, tasks_[0], support).dtype == torch.float32


def test_parameters_that_the_adapter_leaves_alone_are_fine_tuned_as_well(make_vit):
    model = get_peft_model(make_vit(), SMATConfig(num_experts=2, target_modules=["fc1"], init_weights=False))
    support, labels = task_images(0)
    task = adapt_to_support(model, support, labels, adaptation=Adaptation("full", steps=1))
    assert "embeddings.cls_token" in task.weights
    assert "layers.0.attention.q_proj.weight" in task.weights
    assert task.weights.keys() == dict(make_vit().named_parameters()).keys()


def test_a_module_that_an_adapter_trained_whole_is_fine_tuned_as_it_was_trained(make_vit):
    config = SMATConfig(num_experts=2, init_weights=False, modules_to_save=["layernorm"])
    model = get_peft_model(make_vit(), config).eval()
    with torch.no_grad():
        model.base_model.model.layernorm.modules_to_save["default"].weight.mul_(torch.linspace(-1, 1, 16))
    support, labels = task_images(0)
    prototypes = logits_of(model, support, labels, support, Adaptation("prototype"))
    task = adapt_to_support(model, support, labels, adaptation=Adaptation("full", steps=1, learning_rate=1e-9))
    torch.testing.assert_close(task.weights["layernorm.weight"], torch.linspace(-1, 1, 16), rtol=0, atol=1e-5)
    torch.testing.assert_close(classify_queries(model, task, support), prototypes, rtol=0, atol=1e-5)


def test_on_another_method_s_adapter_full_fine_tuning_works_and_lora_says_what_to_do(make_vit):
    model = get_peft_model(make_vit(), LoraConfig(target_modules=["fc1"], init_lora_weights=False)).eval()
    support, labels = task_images(0)
    adaptation = Adaptation("full", steps=2, learning_rate=1e-3, augment=False)
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(
        logits_of(model, support, labels, support, adaptation),
        logits_of(merged, support, labels, support, adaptation),
        rtol=0,
        atol=1e-3,
    )
    with pytest.raises(ConfigurationError, match="merge it first"):
        adapt_to_support(model, support, labels, adaptation=Adaptation("lora"))


@pytest.mark.parametrize("kind", ["prototype", "full", "lora"])
def test_one_call_for_an_episode_gives_what_two_give(smat_vit, kind):
    support, labels = task_images(0)
    queries, _ = task_images(1)
    adaptation = Adaptation(kind, steps=2)
    with torch.inference_mode():
        support, labels = support.clone(), labels.clone()  # as where images are made in this mode
        logits, weights = classify_episode(smat_vit, support, labels, queries, adaptation=adaptation)
    task = adapt_to_support(smat_vit, support, labels, adaptation=adaptation)
    torch.testing.assert_close(logits, classify_queries(smat_vit, task, queries), rtol=0, atol=1e-5)
    torch.testing.assert_close(weights, task.expert_weights)


def test_a_class_without_an_image_is_refused(make_vit, smat_vit):
    support, labels = task_images(0)
    gap = torch.where(labels == 1, 0, labels)
    for model in (make_vit(), smat_vit):
        with pytest.raises(DataError, match="no image has label 1"):
            adapt_to_support(model, support, gap)
        with pytest.raises(DataError, match="no image has label 1"):
            classify_episode(model, support, gap, support)


def test_where_adapters_are_disabled_no_expert_is_mixed(make_vit, smat_vit):
    support, labels = task_images(0)
    expected, _ = classify_episode(make_vit(), support, labels, support)
    with smat_vit.disable_adapter():
        logits, weights = classify_episode(smat_vit, support, labels, support)
    assert weights is None
    torch.testing.assert_close(logits, expected)
    assert not torch.allclose(classify_episode(smat_vit, support, labels, support)[0], expected, atol=1e-2)


def test_a_model_can_be_fine_tuned_while_it_runs_with_a_task_that_has_a_gradient(smat_vit):
    support, labels = task_images(0)
    expected = logits_of(smat_vit, support, labels, support, Adaptation("full", steps=1))
    with smat_vit.task(torch.ones(3, requires_grad=True)):
        assert torch.equal(logits_of(smat_vit, support, labels, support, Adaptation("full", steps=1)), expected)


def test_weights_of_another_backbone_are_refused(make_vit, smat_vit):
    support, labels = task_images(0)
    task = adapt_to_support(smat_vit, support, labels)
    with pytest.raises(ConfigurationError, match="no parameter"):
        classify_queries(nn.Flatten(), task, support)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "fancy"}, "prototype, full or lora, got 'fancy'"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"learning_rate": -1.0}, "learning_rate must be at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 0"),
        ({"lora_dropout": 1.0}, "lora_dropout must be"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Adaptation(**settings)
