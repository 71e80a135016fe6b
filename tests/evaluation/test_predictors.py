"""What may be evaluated, and how its learning rate is chosen."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from smat_peft import SMATConfig, evaluate
from smat_peft.episodes.fixed import FixedEpisodes
from smat_peft.episodes.sampling import EpisodeSampler
from smat_peft.errors import ConfigurationError
from smat_peft.evaluation import fitting
from smat_peft.evaluation.predictors import default_predictors, feature_predictor, prototype_predictor
from smat_peft.evaluation.protocol import EvaluationDomain, episode_samplers
from smat_peft.experts.prototypes import class_means, cosine_logits
from smat_peft.few_shot.adaptation import classify_episode
from smat_peft.few_shot.fine_tuning import Adaptation
from smat_peft.few_shot.learning_rate import choose_learning_rate
from smat_peft.tuner import tasks

FEW_STEPS = {"steps": 2, "learning_rate": 1e-3}


@pytest.fixture
def episodes(make_domain, transform):
    return FixedEpisodes([make_domain("a")], "all", 3, transform=transform, ways=5, shots=2, queries=2)


@pytest.fixture
def run(make_domain, transform):
    """A function that evaluates on three small episodes of a domain."""
    settings = {"transform": transform, "episodes": 3, "ways": 5, "shots": 2, "queries": 2, "progress": False}
    return lambda model, **changes: evaluate(model, [("id", make_domain("a"), "all")], **settings | changes)


def test_any_function_of_pixels_is_measured_by_prototypes(run, episodes):
    evaluation = run(lambda pixels: pixels.flatten(1))
    assert evaluation.predictors == ["features"]
    episode = episodes[0]
    expected = cosine_logits(episode.query.flatten(1), class_means(episode.support.flatten(1), episode.support_labels))
    found = feature_predictor(lambda pixels: pixels.flatten(1), batch_size=3)(episode)
    torch.testing.assert_close(found, expected)


def test_a_function_that_gives_no_features_is_refused(run):
    with pytest.raises(ConfigurationError, match=r"must give \[N, D\] for 20 images, got \(20, 3, 16, 16\)"):
        run(lambda pixels: pixels)


def test_an_adapter_of_another_method_is_measured_beside_its_backbone(run, make_vit):
    torch.manual_seed(0)
    adapted = get_peft_model(make_vit(), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    evaluation = run(adapted)
    assert evaluation.predictors == ["backbone", "LORA"]
    plain = run(make_vit())
    assert evaluation.accuracies("backbone", "a") == plain.accuracies("backbone", "a")
    losses = {
        name: [record.log_loss for record in evaluation.records if record.predictor == name]
        for name in evaluation.predictors
    }
    assert losses["backbone"] == pytest.approx([record.log_loss for record in plain.records])
    assert losses["LORA"] != pytest.approx(losses["backbone"], abs=1e-3)
    assert all(torch.equal(before[name], tensor) for name, tensor in adapted.state_dict().items())
    fine_tuned = run(adapted, adaptation=Adaptation("lora", **FEW_STEPS))
    assert fine_tuned.predictors == ["backbone", "LORA"]


def test_models_by_name_stand_for_themselves(run, smat_vit, make_vit):
    evaluation = run({"plain": make_vit(), "mine": smat_vit, "pixels": feature_predictor(lambda x: x.flatten(1))})
    assert evaluation.predictors == ["plain", "mine", "pixels"]
    assert [record.expert_weights is not None for record in evaluation.records[:3]] == [False, True, False]


def test_an_adapter_without_a_router_is_merged_once(episodes, make_vit, monkeypatch):
    config = SMATConfig(num_experts=2, sparsity_pattern="dense", init_weights=False)
    model = get_peft_model(make_vit(), config).eval()
    expected = [
        classify_episode(model, each.support, each.support_labels, each.query, experts=torch.tensor([0.5, 0.5]))
        for each in episodes
    ]
    predictor = prototype_predictor(model)
    monkeypatch.setattr(tasks, "interpolate", None)  # to merge again would fail
    for each, (logits, weights) in zip(episodes, expected, strict=True):
        prediction = predictor(each)
        torch.testing.assert_close(prediction.logits, logits)
        torch.testing.assert_close(prediction.expert_weights, weights)


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("experts", ["routed", "none"])
def test_a_model_is_fine_tuned_on_each_support(run, smat_vit, kind, experts):
    adaptation = Adaptation(kind, **FEW_STEPS)
    evaluation = run({"mine": prototype_predictor(smat_vit, experts)}, adaptation=adaptation)
    assert {(record.adaptation, record.learning_rate) for record in evaluation.records} == {(kind, 1e-3)}
    prototypes = run({"mine": prototype_predictor(smat_vit, experts)})
    assert {(record.adaptation, record.learning_rate) for record in prototypes.records} == {("prototype", None)}
    assert evaluation.records[0].log_loss != pytest.approx(prototypes.records[0].log_loss, abs=1e-4)


def test_fine_tuned_predictions_are_those_of_classifying_the_episode(episodes, smat_vit):
    adaptation, episode = Adaptation("full", **FEW_STEPS), episodes[0]
    predictors = fitting.adapted({"mine": prototype_predictor(smat_vit)}, adaptation, "given")
    logits, weights, rate = predictors["mine"](episode)
    expected, mixed = classify_episode(
        smat_vit, episode.support, episode.support_labels, episode.query, adaptation=adaptation
    )
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(weights, mixed)
    assert rate == 1e-3


def test_a_rate_chosen_automatically_sees_the_support_alone(episodes, smat_vit):
    adaptation = Adaptation("full", steps=2)
    (predictor,) = fitting.adapted({"mine": prototype_predictor(smat_vit)}, adaptation, "auto").values()
    for episode in episodes:
        expected = choose_learning_rate(smat_vit, episode.support, episode.support_labels, adaptation)
        assert predictor(episode).learning_rate == expected


@pytest.fixture
def searches(monkeypatch):
    """What episodes and grids were searched, each search choosing the next rate of 1e-4, 2e-4, ..."""
    done = []

    def search(model, episodes, adaptation, *, experts, batch_size, rates):
        done.append(([(episode.domain, episode.index) for episode in episodes], rates))
        return 1e-4 * len(done)

    monkeypatch.setattr(fitting, "search_learning_rate", search)
    return done


def test_a_rate_is_chosen_on_validation_episodes_for_each_predictor(run, make_domain, transform, make_vit, searches):
    validation = FixedEpisodes([make_domain("v", seed=1)], "all", 4, transform=transform)
    models = {"one": make_vit(), "two": make_vit(1), "pixels": feature_predictor(lambda x: x.flatten(1))}
    evaluation = run(models, adaptation=Adaptation("full", steps=1), rate_selection="validation", validation=validation)
    assert [episodes for episodes, _ in searches] == [[("v", index) for index in range(4)]] * 2
    rates = {record.predictor: record.learning_rate for record in evaluation.records}
    assert rates == {"one": 1e-4, "two": 2e-4, "pixels": None}
    assert set(evaluation.temperatures) == {"one", "two", "pixels"}


def test_the_published_protocol_chooses_on_the_first_test_tasks_of_each_domain(
    make_domain, transform, make_vit, searches
):
    evaluation = evaluate(
        {"one": make_vit()},
        [("id", make_domain("a"), "all"), ("test_ood", make_domain("b", seed=1), "all")],
        transform=transform,
        episodes=7,
        ways=5,
        shots=1,
        queries=1,
        adaptation=Adaptation("full", steps=1),
        rate_selection="test_tasks",
        validation=FixedEpisodes([make_domain("v", seed=2)], "all", 2, transform=transform),
        progress=False,
    )
    assert [episodes for episodes, _ in searches] == [[(name, index) for index in range(5)] for name in "ab"]
    assert searches[0][1] == (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # METHOD 11
    assert {(record.domain, record.learning_rate) for record in evaluation.records} == {("a", 1e-4), ("b", 2e-4)}
    assert evaluation.temperatures == {}


def test_a_search_sees_at_most_100_images_of_a_class(make_domain, transform):
    sampler = EpisodeSampler([make_domain("a", classes=5, images=130)], "all", 5, 120, 2, transform=transform)
    cut = fitting._with_few_shots(sampler[0])
    assert cut.support_labels.bincount().tolist() == [100] * 5
    assert torch.equal(cut.support[:100], sampler[0].support[:100])


def test_prototypes_have_no_rate_to_search(run, make_vit, searches, episodes):
    evaluation = run({"one": make_vit()}, rate_selection="validation", validation=episodes)
    assert searches == []
    assert evaluation.records[0].learning_rate is None


def test_a_rate_to_choose_on_validation_episodes_needs_some(run, make_vit):
    with pytest.raises(ConfigurationError, match="to be chosen on validation episodes, and there are none"):
        run(make_vit(), adaptation=Adaptation("full"), rate_selection="validation")


def test_a_temperature_lowers_the_loss_on_the_episodes_that_it_was_fitted_on(make_domain, transform, run, smat_vit):
    (sampler,) = episode_samplers(
        [EvaluationDomain("id", make_domain("a"), "all")], transform=transform, ways=5, shots=2, queries=2
    ).values()
    evaluation = run(default_predictors(smat_vit), validation=[sampler[index] for index in range(3)])
    for name in ("backbone", "SMAT", "even mix"):
        records = [record for record in evaluation.records if record.predictor == name]
        before, after = (
            sum(getattr(record, loss) for record in records) for loss in ("log_loss", "calibrated_log_loss")
        )
        assert evaluation.temperatures[name] != pytest.approx(1, abs=0.01)
        assert after < before
