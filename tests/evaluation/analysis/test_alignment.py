"""Cosines of domains' gradients: of tensors by hand, and of a tiny model by autograd through its own delta."""

from itertools import product

import numpy as np
import pytest
import torch

from smat_peft.episodes.sampling import EpisodeSampler
from smat_peft.evaluation.analysis.alignment import between_halves, gradient_cosines, measure_alignment
from smat_peft.evaluation.predictors import mean_expert_weights
from smat_peft.experts.gates import gate_values
from smat_peft.experts.prototypes import class_means, cosine_logits
from smat_peft.tuner import adapters, tasks


def test_a_gradients_parts_are_those_of_the_delta_and_of_each_expert():
    random = torch.Generator().manual_seed(0)
    gradients = [torch.randn(2, 4, 3, generator=random), torch.randn(2, 5, generator=random)]
    gates = [torch.rand(3, 4, 3, generator=random), torch.rand(3, 5, generator=random)]
    weights = torch.rand(2, 3, generator=random)
    found = gradient_cosines(gradients, gates, weights)
    flat = torch.cat([gradient.flatten(1) for gradient in gradients], 1)
    values = torch.cat([each.flatten(1) for each in gates], 1)
    for number, parts in enumerate([flat * (weights @ values), *(flat * expert for expert in values)]):
        expected = torch.cosine_similarity(parts[0], parts[1], dim=0)
        assert found[number, 0, 1] == pytest.approx(expected.item(), abs=1e-5)
        np.testing.assert_allclose(found[number].diagonal(), 1)


def test_structured_gates_cover_what_they_broadcast_to():
    gradient, gates = torch.tensor([[[1.0, 2.0]], [[1.0, -2.0]]]), torch.tensor([[[1.0, 0.0]]])
    found = gradient_cosines([gradient], [gates], torch.ones(2, 1))
    np.testing.assert_allclose(found[1], 1)


def test_an_expert_that_opens_nothing_has_no_cosine():
    found = gradient_cosines([torch.ones(2, 3)], [torch.zeros(1, 3)], torch.ones(2, 1))
    assert np.isnan(found).all()


def test_between_halves_compares_a_domain_with_itself_on_other_tasks():
    cosines = np.arange(16, dtype=float).reshape(1, 4, 4)
    found = between_halves(cosines)[0]
    assert found[0, 0] == cosines[0, 0, 1]
    assert found[1, 1] == cosines[0, 2, 3]
    assert found[0, 1] == cosines[0, :2, 2:].mean()


def loss_of(model, weights, episode):
    with tasks.task(model, weights):
        support, query = (tasks.features(model, images) for images in (episode.support, episode.query))
    logits = cosine_logits(query, class_means(support, episode.support_labels))
    return torch.nn.functional.cross_entropy(logits, episode.query_labels)


def expected_cosines(model, domains, state, part):
    """By autograd: through the delta itself (part 0, trained), else through a zero added where the part adds."""
    gradients = []
    layers = list(adapters.adapter_gates(model, "default"))
    for sampler in domains.values():
        mix = mean_expert_weights(model, [sampler[0], sampler[1]])
        for episode in (sampler[0], sampler[1]):
            merged = tasks.interpolate(model, mix, training=False)
            if part == 0 and state == "trained":
                leaves = [layer.smat_delta["default"][name] for layer, name, _ in layers]
            else:
                leaves, shifted = [], {}
                for layer, name, logits in layers:
                    values = gate_values(logits.detach(), layer.gate_temperature("default", training=False))
                    values = torch.einsum("m,m...->...", mix, values) if part == 0 else mix[part - 1] * values[part - 1]
                    base = getattr(layer.get_base_layer(), name)
                    start = base if state == "before" else merged[layer.full_name(name)]
                    leaves.append(torch.zeros_like(base, requires_grad=True))
                    shifted[layer.full_name(name)] = start.detach() + values * leaves[-1]
                merged = shifted
            found = torch.autograd.grad(loss_of(model, merged, episode), leaves, allow_unused=True)
            gradients.append(torch.cat([each.flatten() for each in found if each is not None]))
    return torch.stack([torch.cosine_similarity(one, other, dim=0) for one, other in product(gradients, gradients)])


@pytest.mark.parametrize("part", [0, 2], ids=["delta", "expert"])
@pytest.mark.parametrize("state", ["before", "trained"])
def test_a_models_cosines_are_those_of_its_deltas_gradients(smat_vit, make_domain, transform, state, part):
    domains = {
        name: EpisodeSampler([make_domain(name, seed=seed)], "all", 5, 2, 3, seed, transform=transform, augment=False)
        for seed, name in enumerate(("a", "b"))
    }
    found = getattr(measure_alignment(smat_vit, domains, 2), state)[part]
    expected = between_halves(expected_cosines(smat_vit, domains, state, part).reshape(4, 4).numpy().astype(float))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert abs(found[0, 1]) < 0.999  # the cosines are of something
