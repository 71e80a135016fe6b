"""Parts of a backbone chosen by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import ConvNextConfig, ConvNextModel

from smat_peft import SMATConfig
from smat_peft.errors import ConfigurationError
from smat_peft.tuner.adapters import adapted_size, adapter_gates
from smat_peft.tuner.subsets import SUBSETS, adaptable, share_of_parameters


def test_what_can_be_adapted_is_what_an_adapter_without_targets_adapts(make_vit: Any) -> None:
    backbone = make_vit()
    sizes = {part.name: part.parameter.numel() for part in adaptable(backbone, "auto")}
    model = get_peft_model(backbone, SMATConfig())
    assert set(sizes) == {layer.full_name(name) for layer, name, _ in adapter_gates(model, "default")}
    assert sum(sizes.values()) == adapted_size(model)


@pytest.mark.parametrize("name", list(SUBSETS))
def test_an_adapter_of_a_subset_adapts_that_and_nothing_else(make_vit: Any, name: str) -> None:
    backbone = make_vit()
    targets = SUBSETS[name](backbone, "auto", 0.3)
    share, size = share_of_parameters(backbone, "auto", targets), adapted_size(get_peft_model(make_vit(), SMATConfig()))
    model = get_peft_model(backbone, SMATConfig(num_experts=1, target_parameters=targets))
    assert {layer.full_name(name) for layer, name, _ in adapter_gates(model, "default")} == set(targets)
    assert adapted_size(model) == round(share * size)
    deltas = [p.numel() for parameter, p in model.named_parameters() if ".smat_delta." in parameter]
    assert sum(deltas) == adapted_size(model)  # weight and bias of a module are in one layer, not one around the other
    assert 0 < share < 1


def test_subsets_are_of_the_kind_that_they_are_called(make_vit: Any) -> None:
    backbone = make_vit()
    chosen = {name: SUBSETS[name](backbone, "auto", 0.3) for name in SUBSETS}
    assert all("attention" in name for name in chosen["attention"])
    assert not any("attention" in name or "norm" in name or "embed" in name for name in chosen["mlp"])
    assert all("norm" in name for name in chosen["norms"])
    assert all(name.endswith("bias") for name in chosen["biases"])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_layers_are_taken_from_one_end_until_there_are_enough(make_vit: Any, share: float) -> None:
    backbone = make_vit()
    order = [part.name for part in adaptable(backbone, "auto")]
    first, last = (SUBSETS[name](backbone, "auto", share) for name in ("first-layers", "last-layers"))
    assert first == order[: len(first)]
    assert last == order[::-1][: len(last)]
    for chosen in (first, last):
        assert share_of_parameters(backbone, "auto", chosen) >= share
        assert share_of_parameters(backbone, "auto", chosen[:-1]) < share


def test_a_backbone_without_attention_says_so() -> None:
    torch.manual_seed(0)
    backbone: nn.Module = ConvNextModel(ConvNextConfig(hidden_sizes=[4, 4, 4, 4], depths=[1, 1, 1, 1]))
    with pytest.raises(ConfigurationError, match="ConvNextModel has no parameters of this kind: attention"):
        SUBSETS["attention"](backbone, "auto", 0.3)
