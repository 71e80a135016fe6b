"""An adapter that a transformers model took by its own methods is the one that PEFT's wrapper would have given it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.integrations.peft
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, ViTModel

from smat_peft import SMATConfig
from smat_peft.errors import ConfigurationError
from smat_peft.few_shot import FewShotClassifier
from smat_peft.tuner import adapters, tasks
from tests.tuner.backbones import assert_same

CONFIG = {"num_experts": 3, "init_weights": False}
SUPPORT, LABELS = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3


@pytest.fixture(autouse=True)
def installed_peft_is_new_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5.24 asks for a PEFT that came after 0.21; what it does with an adapter works with that one, too."""
    monkeypatch.setattr(transformers.integrations.peft, "MIN_PEFT_VERSION", importlib.metadata.version("peft"))


def by_peft(base: nn.Module, seed: int = 0, adapter_name: str = "default", **changes: Any) -> PeftModel:
    torch.manual_seed(seed)
    return get_peft_model(base, SMATConfig(**CONFIG | changes), adapter_name).eval()


def by_transformers(base: nn.Module, seed: int = 0, adapter_name: str = "default", **changes: Any) -> nn.Module:
    torch.manual_seed(seed)
    base.add_adapter(SMATConfig(**CONFIG | changes), adapter_name)
    return base.eval()


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(SUPPORT).last_hidden_state


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def of(model: nn.Module) -> nn.Module:
    """The transformers model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def saved_adapter(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    state = get_peft_model_state_dict(model, adapter_name=adapter_name)
    return {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}


def test_adding_an_adapter_gives_the_same_one(make_vit: Callable[..., ViTModel]) -> None:
    wrapped, native = by_peft(make_vit()), by_transformers(make_vit())
    assert same(saved_adapter(wrapped), saved_adapter(native))
    assert_same(output(wrapped), output(native))
    trainable = {name for name, p in native.named_parameters() if p.requires_grad}
    assert trainable == {name for name, p in of(wrapped).named_parameters() if p.requires_grad}


def test_each_route_loads_what_the_other_saved(make_vit: Callable[..., ViTModel], tmp_path: Path) -> None:
    wrapped = by_peft(make_vit())
    of(wrapped).smatrouter.smat_router["default"].episodes_seen.fill_(900)
    wrapped.save_pretrained(tmp_path / "wrapped")
    native = make_vit()
    native.load_adapter(str(tmp_path / "wrapped"), adapter_name="other")
    assert same(saved_adapter(native.eval(), "other"), saved_adapter(wrapped))
    assert_same(output(native), output(wrapped))

    native.save_pretrained(tmp_path / "native")
    again = PeftModel.from_pretrained(make_vit(), tmp_path / "native").eval()
    assert same(saved_adapter(again), saved_adapter(wrapped))
    assert_same(output(again), output(wrapped))


def test_from_pretrained_with_the_folder_of_an_adapter(make_vit: Callable[..., ViTModel], tmp_path: Path) -> None:
    make_vit().save_pretrained(tmp_path / "base")
    base = ViTModel.from_pretrained(tmp_path / "base", add_pooling_layer=False)
    wrapped = by_peft(base)
    wrapped.save_pretrained(tmp_path / "adapter")
    loaded = ViTModel.from_pretrained(tmp_path / "adapter", add_pooling_layer=False).eval()
    assert same(saved_adapter(loaded), saved_adapter(wrapped))
    assert_same(output(loaded), output(wrapped))


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # PEFT's, of any second adapter by this route
def test_switching_disabling_and_deleting(make_vit: Callable[..., ViTModel]) -> None:
    native = by_transformers(by_transformers(make_vit()), seed=1, adapter_name="other")
    first, second = (output(by_peft(make_vit(), seed)) for seed in (0, 1))
    native.set_adapter("default")
    assert_same(output(native), first)
    native.set_adapter("other")
    assert_same(output(native), second)
    native.disable_adapters()
    assert_same(output(native), output(make_vit()))
    native.enable_adapters()
    native.delete_adapter("default")
    assert_same(output(native), second)
    assert not any(".default" in name for name, _ in native.named_parameters())
    native.delete_adapter("other")
    assert_same(output(native), output(make_vit()))


def test_tasks_are_the_same_by_either_route(make_vit: Callable[..., ViTModel]) -> None:
    results = []
    for model in (by_peft(make_vit()), by_transformers(make_vit())):
        with tasks.task(model, {}):
            frozen = tasks.features(model, SUPPORT).detach()
        routed = tasks.route(model, frozen[:3]).weights
        merged = tasks.interpolate(model, routed)
        tasks.adapt(model, SUPPORT, LABELS)
        adapted = tasks.features(model, SUPPORT)
        tasks.reset_task(model)
        predicted = FewShotClassifier(model).fit(SUPPORT, LABELS).predict_proba(SUPPORT)
        results.append({"routed": routed, "adapted": adapted, "predicted": torch.as_tensor(predicted)} | merged)
        assert not torch.allclose(adapted, frozen, atol=1e-4)
        assert adapters.unadapted_parameters(model) == []
    assert same(*results)


def classifier() -> ViTForImageClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=3))


def trained(model: nn.Module, folder: Path, **changes: Any) -> nn.Module:
    images = [{"pixel_values": pixels, "labels": label} for pixels, label in zip(SUPPORT, LABELS, strict=True)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=3,
        learning_rate=1e-2,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to=[],
        disable_tqdm=True,
        label_names=["labels"],
    )
    Trainer(model, arguments, train_dataset=images).train(**changes)
    return model


@pytest.mark.filterwarnings("ignore")  # Trainer's own
def test_trainer_trains_both_alike_and_resumes_to_the_bit(tmp_path: Path) -> None:
    changes = {"modules_to_save": ["classifier"], "init_weights": True}
    wrapped = trained(by_peft(classifier(), **changes), tmp_path / "wrapped")
    native = trained(by_transformers(classifier(), **changes), tmp_path / "native")
    assert not same(saved_adapter(wrapped), saved_adapter(by_peft(classifier(), **changes)))
    assert same(saved_adapter(wrapped), saved_adapter(native))
    for folder in ("wrapped", "native"):
        assert (tmp_path / folder / "checkpoint-4" / "adapter_model.safetensors").exists()
    # Of a model that is not wrapped, Trainer itself resumes no adapter, of whichever method.
    fresh, checkpoint = by_peft(classifier(), seed=5, **changes), tmp_path / "wrapped" / "checkpoint-2"
    resumed = trained(fresh, tmp_path / "resumed", resume_from_checkpoint=str(checkpoint))
    assert same(saved_adapter(resumed), saved_adapter(wrapped))
    loaded = classifier()
    loaded.load_adapter(str(tmp_path / "native" / "checkpoint-4"))
    assert same(saved_adapter(loaded), saved_adapter(wrapped))


def test_what_it_cannot_do_is_said_at_once(make_vit: Callable[..., ViTModel], tmp_path: Path) -> None:
    model = by_peft(make_vit())
    with pytest.raises(ConfigurationError, match="run each adapter's samples on their own"):
        model(SUPPORT, adapter_names=["default"] * len(SUPPORT))
    with pytest.raises(ValueError, match="'SMAT' is not compatible with the `PeftMixedModel`"):
        get_peft_model(make_vit(), SMATConfig(**CONFIG), mixed=True)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Hotswapping only supports"):
        hotswap_adapter(model, tmp_path, adapter_name="default")
    quantised = nn.Sequential(nn.Linear(4, 4))
    quantised[0].weight = nn.Parameter(torch.zeros(8, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ConfigurationError, match="this Linear is quantised: load the model without"):
        by_peft(quantised)
