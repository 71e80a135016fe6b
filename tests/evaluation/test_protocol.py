"""Evaluation: same episodes for all, right records, and a model that comes back as it was."""

import pytest
import torch

from smat_peft.episodes.sampling import EpisodeSampler
from smat_peft.errors import ConfigurationError, DataError
from smat_peft.evaluation import Prediction, default_predictors, evaluate, mean_expert_weights, prototype_predictor
from smat_peft.evaluation.protocol import EvaluationDomain
from smat_peft.experts.prototypes import class_means, cosine_logits
from smat_peft.tuner import tasks


def oracle(episode):
    return torch.nn.functional.one_hot(episode.query_labels, episode.ways).float()


def always_the_first(episode):
    return torch.eye(episode.ways)[torch.zeros(len(episode.query), dtype=torch.int64)]


def test_predictors_see_the_very_same_episodes(make_domain, transform):
    seen = {"one": [], "two": []}

    def watching(name):
        def predict(episode):
            seen[name].append(episode)
            return oracle(episode)

        return predict

    domains = [("id", make_domain("a"), "all"), ("dev_ood", make_domain("b", seed=1), "all")]
    evaluate({name: watching(name) for name in seen}, domains, transform=transform, episodes=3, progress=False)
    assert len(seen["one"]) == 6
    assert all(torch.equal(one.query, two.query) for one, two in zip(seen["one"], seen["two"], strict=True))


def test_accuracies_are_the_share_of_right_queries(make_domain, transform):
    evaluation = evaluate(
        {"first": always_the_first, "oracle": oracle},
        [("id", make_domain("a"), "all")],
        transform=transform,
        episodes=3,
        ways=5,
        shots=2,
        queries=4,
        progress=False,
    )
    assert evaluation.accuracies("oracle", "a") == [1.0, 1.0, 1.0]
    assert evaluation.accuracies("first", "a") == pytest.approx([0.2, 0.2, 0.2])
    assert evaluation.difference("oracle", "first", "a").mean == pytest.approx(0.8)
    record = evaluation.records[1]
    assert (record.predictor, record.domain, record.role, record.index) == ("oracle", "a", "id", 0)
    assert (record.ways, record.support, record.queries, record.expert_weights) == (5, 10, 20, None)


def test_a_domain_s_own_ways_shots_and_queries_go_before_those_of_all(make_domain, transform):
    domains = [("id", make_domain("a"), "all"), EvaluationDomain("test_ood", make_domain("b"), "all", 4, 2, 3)]
    evaluation = evaluate(
        {"oracle": oracle}, domains, transform=transform, episodes=1, ways=6, shots=1, queries=2, progress=False
    )
    shapes = {record.domain: (record.ways, record.support, record.queries) for record in evaluation.records}
    assert shapes == {"a": (6, 6, 12), "b": (4, 8, 12)}


def test_episodes_depend_on_the_seed_and_the_domain_alone(make_domain, transform):
    a, b = ("id", make_domain("a"), "all"), ("test_ood", make_domain("b", seed=1), "all")

    def queries(domains, seed=0):
        pixels = {}

        def predict(episode):
            pixels.setdefault(episode.domain, []).append(episode.query.clone())
            return oracle(episode)

        evaluate({"any": predict}, domains, transform=transform, episodes=2, seed=seed, progress=False)
        return {name: [float(images.sum()) for images in of_domain] for name, of_domain in pixels.items()}

    both = queries([a, b])
    assert both == queries([b, a])
    assert both["a"] == queries([a])["a"]
    assert both["a"] != queries([a], seed=1)["a"]


def test_domains_draw_their_ways_independently(make_domain, transform):
    domains = [("id", make_domain(name, classes=30), "all") for name in ("a", "b")]
    evaluation = evaluate({"oracle": oracle}, domains, transform=transform, episodes=8, progress=False)
    ways = {name: [record.ways for record in evaluation.records if record.domain == name] for name in ("a", "b")}
    assert ways["a"] != ways["b"]


def test_a_model_with_experts_is_measured_beside_its_backbone(make_domain, transform, smat_vit, make_vit):
    domains = [("id", make_domain("a"), "all")]
    settings = {"transform": transform, "episodes": 3, "progress": False}
    evaluation = evaluate(smat_vit, domains, **settings)
    assert evaluation.predictors == ["backbone", "SMAT", "even mix"]
    plain = evaluate(make_vit(), domains, **settings)
    assert plain.predictors == ["backbone"]
    assert plain.accuracies("backbone", "a") == evaluation.accuracies("backbone", "a")
    weights = [record.expert_weights for record in evaluation.records if record.predictor == "SMAT"]
    assert all(len(of_episode) == 3 and sum(of_episode) == pytest.approx(1) for of_episode in weights)
    assert len(set(weights)) == 3


def test_smat_predicts_as_adapting_the_model_would(make_domain, transform, smat_vit):
    episode = EpisodeSampler([make_domain("a")], "all", transform=transform)[0]
    prediction = prototype_predictor(smat_vit, batch_size=7)(episode)
    smat_vit.eval()
    routed = tasks.adapt(smat_vit, episode.support, episode.support_labels)
    with torch.no_grad():
        prototypes = class_means(tasks.features(smat_vit, episode.support), episode.support_labels)
        expected = cosine_logits(tasks.features(smat_vit, episode.query), prototypes)
    torch.testing.assert_close(prediction.expert_weights, routed.weights)
    torch.testing.assert_close(prediction.logits, expected)
    backbone = prototype_predictor(smat_vit, "none")(episode)
    assert (prediction.logits - backbone.logits).abs().max() > 0.01


def test_the_model_comes_back_as_it_was(make_domain, transform, smat_vit):
    images = torch.randn(2, 3, 16, 16)
    domain = make_domain("a")
    smat_vit.train()
    smat_vit.get_submodule("base_model.model.layernorm").eval()  # a mixed mode
    modes = {name: module.training for name, module in smat_vit.named_modules()}
    weights = {name: tensor.clone() for name, tensor in smat_vit.state_dict().items()}
    before = tasks.features(smat_vit, images)
    evaluate(smat_vit, [("id", domain, "all")], transform=transform, episodes=2, progress=False)
    assert {name: module.training for name, module in smat_vit.named_modules()} == modes
    assert all(torch.equal(weights[name], tensor) for name, tensor in smat_vit.state_dict().items())
    after = tasks.features(smat_vit, images)
    assert torch.equal(before, after)
    after.sum().backward()  # nothing left over from inference stands in the way of training


def test_a_predictor_that_fails_leaves_the_model_as_it_was(make_domain, transform, smat_vit):
    episode = EpisodeSampler([make_domain("a")], "all", transform=transform)[0]
    smat_vit.train()
    before = tasks.features(smat_vit, episode.query)

    def fail(*_):
        raise RuntimeError("out of memory")

    hook = smat_vit.get_submodule("base_model.model.layernorm").register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        prototype_predictor(smat_vit)(episode)
    hook.remove()
    assert smat_vit.training
    assert torch.equal(tasks.features(smat_vit, episode.query), before)


def test_the_fixed_mix_is_the_mean_of_the_routed_ones(make_domain, transform, smat_vit):
    sampler = EpisodeSampler([make_domain("a")], "all", transform=transform)
    mean = mean_expert_weights(smat_vit, (sampler[index] for index in range(3)))
    smat_vit.eval()
    routed = [tasks.adapt(smat_vit, sampler[i].support, sampler[i].support_labels).weights for i in range(3)]
    tasks.reset_task(smat_vit)
    torch.testing.assert_close(mean, torch.stack(routed).mean(0))
    predictors = default_predictors(smat_vit, mean_experts=mean)
    assert list(predictors) == ["backbone", "SMAT", "fixed mean experts", "even mix"]
    for index in range(2):
        torch.testing.assert_close(predictors["fixed mean experts"](sampler[index]).expert_weights, mean)
        torch.testing.assert_close(predictors["even mix"](sampler[index]).expert_weights, torch.full((3,), 1 / 3))


def test_expert_weights_need_experts_and_episodes(smat_vit, make_vit):
    with pytest.raises(ConfigurationError, match="no experts"):
        mean_expert_weights(make_vit(), [])
    with pytest.raises(DataError, match="no episodes"):
        mean_expert_weights(smat_vit, [])


def test_a_predictor_may_say_how_it_mixed_the_experts(make_domain, transform):
    def predict(episode):
        return Prediction(oracle(episode), torch.tensor([0.25, 0.75]))

    evaluation = evaluate({"mine": predict}, [("id", make_domain("a"), "all")], transform=transform, episodes=1)
    assert evaluation.records[0].expert_weights == (0.25, 0.75)


def test_logits_that_are_no_numbers_are_refused_and_not_counted_as_the_first_class(make_domain, transform):
    def diverged(episode):
        return oracle(episode) * float("nan")

    with pytest.raises(ConfigurationError, match="'mine' gives logits that are no numbers"):
        evaluate({"mine": diverged}, [("id", make_domain("a"), "all")], transform=transform, episodes=1)


def test_logits_of_another_shape_are_refused(make_domain, transform):
    with pytest.raises(ConfigurationError, match="'mine' must give logits of shape"):
        evaluate(
            {"mine": lambda episode: torch.zeros(len(episode.query))},
            [("id", make_domain("a"), "all")],
            transform=transform,
            episodes=1,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {}}, "nothing to evaluate"),
        ({"episodes": 0}, "nothing to evaluate"),
        ({"domains": []}, "nothing to evaluate"),
        ({"domains": ["twice"]}, "different names; more than one is called a"),
        ({"domains": ["role"]}, "domain 'a': unknown role 'ood'; roles are id, dev_ood, test_ood"),
        ({"domains": ["few"]}, "domain 'few'|classes found: few"),
    ],
)
def test_bad_input_is_one_clear_error(make_domain, transform, change, message):
    domain, few = make_domain("a"), make_domain("few", classes=4)
    lists = {
        "twice": [("id", domain, "all"), ("test_ood", domain, "all")],
        "role": [("ood", domain, "all")],
        "few": [("id", few, "all")],
    }
    model = change.get("model", {"oracle": oracle})
    domains = [entry for name in change["domains"] for entry in lists[name]] if "domains" in change else lists["few"]
    with pytest.raises((ConfigurationError, DataError), match=message):
        evaluate(model, domains, transform=transform, episodes=change.get("episodes", 1), progress=False)
