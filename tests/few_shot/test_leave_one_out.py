"""Leaving one image out: it is in nothing that classifies it."""

import pytest
import torch

from smat_peft.few_shot import Adaptation, adapt_to_support, classify_queries
from smat_peft.few_shot.leave_one_out import images_to_leave_out, leave_one_out
from tests.tuner.backbones import task_images


@pytest.mark.parametrize("kind", ["prototype", "full", "lora"])
@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "experts"])
def test_an_image_is_classified_by_all_the_others_alone(smat_vit, make_vit, adapted, kind):
    model = smat_vit if adapted else make_vit()
    support, labels = task_images(0, classes=3, shots=2)
    adaptation = Adaptation(kind, steps=2, learning_rate=1e-3)
    found = list(leave_one_out(model, support, labels, adaptation=adaptation))
    assert len(found) == 6
    for number, logits in enumerate(found):
        others = torch.arange(6) != number
        task = adapt_to_support(model, support[others], labels[others], adaptation=adaptation)
        torch.testing.assert_close(logits, classify_queries(model, task, support[number : number + 1])[0])


def test_the_only_image_of_a_class_stays_in(make_vit):
    support, _ = task_images(0, classes=5, shots=1)
    labels = torch.tensor([0, 1, 0, 2, 2])
    assert images_to_leave_out(labels) == [0, 2, 3, 4]
    assert [len(logits) for logits in leave_one_out(make_vit(), support, labels)] == [3] * 4


def test_the_model_comes_back_as_it_was(smat_vit):
    support, labels = task_images(0)
    before = {name: tensor.clone() for name, tensor in smat_vit.state_dict().items()}
    smat_vit.train()
    list(leave_one_out(smat_vit, support, labels))
    assert all(module.training for module in smat_vit.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in smat_vit.state_dict().items())
