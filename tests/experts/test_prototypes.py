"""The cosine prototype head (METHOD 5)."""

import pytest
import torch

from smat_peft.experts.prototypes import class_means, cosine_logits


def test_a_prototype_is_the_mean_of_its_class() -> None:
    features = torch.tensor([[1.0, 0.0], [3.0, 2.0], [0.0, 5.0]])
    means = class_means(features, torch.tensor([1, 1, 0]))
    assert torch.equal(means, torch.tensor([[0.0, 5.0], [2.0, 1.0]]))


def test_prototypes_have_the_means_gradient() -> None:
    features = torch.randn(4, 3, requires_grad=True)
    class_means(features, torch.tensor([0, 1, 1, 1]))[1].sum().backward()
    assert features.grad is not None
    torch.testing.assert_close(features.grad, torch.tensor([0.0, 1 / 3, 1 / 3, 1 / 3]).view(4, 1).expand(4, 3))


def test_logits_are_ten_times_the_cosine_whatever_the_lengths() -> None:
    features, prototypes = torch.randn(5, 3), torch.randn(2, 3)
    cosines = torch.nn.functional.cosine_similarity(features[:, None], prototypes[None], dim=-1)
    torch.testing.assert_close(cosine_logits(features, prototypes), 10 * cosines)
    torch.testing.assert_close(cosine_logits(features * 1e-3, prototypes * 1e4, scale=1.0), cosines)


def test_a_zero_vector_has_logits_and_gradients_of_zero() -> None:
    features = torch.zeros(1, 3, requires_grad=True)
    prototypes = torch.stack([torch.zeros(3), torch.ones(3)]).requires_grad_()
    logits = cosine_logits(features, prototypes)
    assert torch.equal(logits, torch.zeros(1, 2))
    logits.sum().backward()
    assert features.grad is not None
    assert prototypes.grad is not None
    assert torch.isfinite(features.grad).all()
    assert torch.equal(prototypes.grad, torch.zeros(2, 3))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_give_float32(dtype: torch.dtype, autocast: bool) -> None:
    features, labels = torch.randn(6, 8).to(dtype), torch.tensor([0, 0, 0, 1, 1, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        prototypes = class_means(features, labels)
        logits = cosine_logits(features, prototypes)
    assert prototypes.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(prototypes, class_means(features.float(), labels))
    torch.testing.assert_close(logits, cosine_logits(features.float(), prototypes))


def test_double_precision_stays_double() -> None:
    features = torch.randn(4, 3, dtype=torch.float64)
    prototypes = class_means(features, torch.tensor([0, 1, 0, 1]))
    assert prototypes.dtype == cosine_logits(features, prototypes).dtype == torch.float64
