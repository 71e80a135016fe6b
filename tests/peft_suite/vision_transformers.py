"""PEFT's common checks on vision transformers, which PEFT has no tests of; the checks are its own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from peft import PeftModel, get_peft_model
from peft_tests.testing_common import PeftCommonTester
from stand_ins import path_of
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

from smat_peft import SMATConfig

NORMS = "layernorm_before|layernorm_after|norm1|norm2"
LEAVES = rf".*({NORMS}|query|key|value|[qkvo]_proj|dense|fc1|fc2|projection|layernorm)$"
TARGETS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["query", "value", "q_proj", "v_proj"], "modules_to_save": ["classifier"]},
    "all-linear": {"target_modules": "all-linear"},
    "patches": {"target_modules": ["projection"], "modules_to_save": ["classifier"]},
    "norms": {"target_modules": rf".*({NORMS})$", "modules_to_save": ["classifier"]},
    "leaves": {"target_modules": LEAVES},
    "whole backbone": {},
}
AS_CONFIGURED = ["model_attr", "adapter_name", "load_model_low_cpu_mem_usage", "training", "inference_safetensors"]
AS_CONFIGURED += ["delete_adapter", "delete_inactive_adapter", "get_base_model_state_dict"]
RANDOM_DELTA = ["save_pretrained", "save_pretrained_selected_adapters", "load_multiple_adapters", "merge_layers"]
RANDOM_DELTA += ["merge_layers_multi", "merge_layers_nan", "merge_layers_is_idempotent", "safe_merge", "unload_adapter"]

over_targets = pytest.mark.parametrize("targets", [pytest.param(value, id=name) for name, value in TARGETS.items()])
over_models = pytest.mark.parametrize("model_id", ["vit", "dinov2"])


def load(model_id: str, **settings: Any) -> nn.Module:
    return AutoModelForImageClassification.from_pretrained(path_of(model_id), **settings)


def logits(model: nn.Module) -> Tensor:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return model.eval()(pixel_values=torch.randn(3, 3, 30, 30)).logits


@over_targets
@over_models
class TestVisionTransformers(PeftCommonTester):
    transformers_class = AutoModelForImageClassification

    def prepare_inputs_for_testing(self) -> dict[str, Tensor]:
        torch.manual_seed(0)
        return {"pixel_values": torch.randn(3, 3, 30, 30)}

    @pytest.mark.parametrize("check", [*AS_CONFIGURED, *RANDOM_DELTA])
    def test_common(self, model_id: str, targets: dict[str, Any], check: str) -> None:
        settings = (cases.RANDOM if check in RANDOM_DELTA else cases.FEW) | targets
        getattr(self, f"_test_{check}")(path_of(model_id), SMATConfig, settings)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_the_base_models_type_is_kept(self, model_id: str, targets: dict[str, Any], dtype: torch.dtype) -> None:
        self._test_add_adapter_no_autocast_adapter_dtype(path_of(model_id), SMATConfig, cases.FEW | targets, dtype)

    def test_checkpointing_gives_the_same_gradients(self, model_id: str, targets: dict[str, Any]) -> None:
        model = get_peft_model(load(model_id), SMATConfig(**cases.RANDOM | targets)).train()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        gradients = []
        for checkpointing in (False, True):
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            model(**self.prepare_inputs_for_testing()).logits.square().sum().backward()
            gradients.append({name: p.grad for name, p in trained.items()})
            model.zero_grad()
        assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())

    def test_disabling_gives_the_base_model(self, model_id: str, targets: dict[str, Any]) -> None:
        base = logits(load(model_id))
        model = get_peft_model(load(model_id), SMATConfig(**cases.RANDOM | targets))
        adapted = logits(model)
        assert not torch.allclose(adapted, base)
        with model.disable_adapter():
            assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), adapted)

    def test_transformers_own_adapters(self, model_id: str, targets: dict[str, Any], tmp_path: Path) -> None:
        model = load(model_id)
        model.add_adapter(SMATConfig(**cases.RANDOM | targets))
        adapted = logits(model)
        model.save_pretrained(tmp_path)
        loaded = load(model_id)
        loaded.load_adapter(str(tmp_path))
        assert torch.equal(logits(loaded), adapted)
        loaded.disable_adapters()
        assert torch.equal(logits(loaded), logits(load(model_id)))
        loaded.enable_adapters()
        loaded.delete_adapter("default")

    def test_trainer(self, model_id: str, targets: dict[str, Any], tmp_path: Path) -> None:
        model = get_peft_model(load(model_id), SMATConfig(**cases.FEW | targets))
        images = [{"pixel_values": torch.randn(3, 30, 30), "labels": index % 3} for index in range(8)]
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            save_steps=2,
            eval_steps=2,
            eval_strategy="steps",
            per_device_train_batch_size=4,
            report_to=[],
            load_best_model_at_end=True,
            use_cpu=True,
            label_names=["labels"],
            learning_rate=1e-2,
        )
        Trainer(model=model, args=arguments, train_dataset=images, eval_dataset=images).train()
        loaded = PeftModel.from_pretrained(load(model_id), tmp_path / "checkpoint-2")
        assert torch.equal(logits(loaded), logits(model))

    def test_copied_and_compiled(self, model_id: str, targets: dict[str, Any]) -> None:
        model = get_peft_model(load(model_id), SMATConfig(**cases.RANDOM | targets))
        adapted = logits(model)
        assert torch.equal(logits(copy.deepcopy(model)), adapted)
        assert torch.allclose(logits(torch.compile(model, backend="eager")), adapted, atol=1e-5)
