"""Ordinary training with transformers' Trainer: the sparsity is held, gates have their own rate, resuming is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import Trainer, TrainerState, TrainingArguments, ViTConfig, ViTForImageClassification

from smat_peft import SMATConfig
from smat_peft.errors import ConfigurationError
from smat_peft.experts.gates import GATE_LIMIT
from smat_peft.meta_tuning.single_task import SparsityCallback, create_optimizer
from tests.small_models import VIT

CLASSES = 3
CENTRES = torch.randn(CLASSES, 3, 16, 16, generator=torch.Generator().manual_seed(7))


class Noisy(torch.utils.data.Dataset[dict[str, Any]]):
    """Images around the centre of their class."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> dict[str, Any]:
        noise = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": CENTRES[index % CLASSES] + noise, "labels": index % CLASSES}


def make_model(**settings: Any) -> PeftModel:
    torch.manual_seed(0)
    config = ViTConfig(**VIT | {"num_hidden_layers": 1}, num_labels=CLASSES)
    settings = {"num_experts": 2, "target_sparsity": 0.7, "modules_to_save": ["classifier"]} | settings
    return get_peft_model(ViTForImageClassification(config), SMATConfig(**settings))


def make_trainer(folder: Path, model: PeftModel | None = None, **changes: Any) -> Trainer:
    model = model or make_model()
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 60,
        "per_device_train_batch_size": 8,
        "logging_steps": 5,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    return Trainer(
        model,
        TrainingArguments(**settings | changes),
        train_dataset=Noisy(),
        optimizers=(create_optimizer(model, lr=1e-2, gate_lr=0.05), None),
        callbacks=[SparsityCallback(multiplier_lr=5.0)],
    )


def callback_of(trainer: Trainer) -> SparsityCallback:
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, SparsityCallback))


def adapter(model: PeftModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".smat_" in name or "to_save" in name}


def test_training_closes_as_many_gates_as_asked_for_and_learns(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert losses[-1] < losses[0] / 2
    assert trainer.state.log_history[-2]["sparsity"] == pytest.approx(0.7, abs=0.05)
    for name, parameter in trainer.model.named_parameters():
        if "smat_gates" in name:
            assert parameter.abs().max() <= GATE_LIMIT


def test_without_the_callback_gates_stay_open(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.remove_callback(SparsityCallback)
    trainer.train()
    assert trainer.model.train().sparsity().max() < 0.3


def test_a_resumed_training_ends_bit_identical_to_an_undisturbed_one(tmp_path: Path) -> None:
    undisturbed = make_trainer(tmp_path / "undisturbed", max_steps=8)
    undisturbed.train()
    stopped = make_trainer(tmp_path / "stopped", max_steps=8, save_strategy="steps", save_steps=4)
    stopped.train()
    resumed = make_trainer(tmp_path / "stopped", max_steps=8, save_strategy="steps", save_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-4"))
    assert callback_of(resumed).multipliers == callback_of(undisturbed).multipliers
    after = adapter(resumed.model)
    for name, tensor in adapter(undisturbed.model).items():
        assert torch.equal(after[name], tensor), name


def test_the_constraint_adds_its_gradient_to_the_gates_alone() -> None:
    model, callback, state = (
        make_model(target_sparsity=0.5).train(),
        SparsityCallback(multiplier_lr=2.0),
        TrainerState(),
    )
    state.stateful_callbacks = {}
    callback.on_train_begin(None, state, None)
    callback.on_pre_optimizer_step(None, state, None, model=model)  # multipliers are 0: it only moves them
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    first = torch.tensor(callback.multipliers)
    torch.testing.assert_close(first, 2.0 * (0.5 - model.sparsity()) / 2)

    expected = torch.dot(model.expected_l0(), first / 2)
    gates = {n: p for n, p in model.named_parameters() if "smat_gates" in n}
    gradients = dict(zip(gates, torch.autograd.grad(expected, list(gates.values())), strict=True))
    gates[next(iter(gates))].grad = torch.ones_like(next(iter(gates.values())))  # what the task left there
    callback.on_pre_optimizer_step(None, state, None, model=model)
    for position, (name, parameter) in enumerate(gates.items()):
        torch.testing.assert_close(parameter.grad, gradients[name] + (1.0 if position == 0 else 0.0))
    assert all(p.grad is None for n, p in model.named_parameters() if "smat_gates" not in n)


def test_gates_have_a_learning_rate_of_their_own_and_no_decay() -> None:
    model = make_model()
    rest, gates = create_optimizer(model, lr=1e-3, gate_lr=0.1, weight_decay=0.01).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert (rest["lr"], rest["weight_decay"], gates["lr"], gates["weight_decay"]) == (1e-3, 0.01, 0.1, 0.0)
    assert all("smat_gates" in names[id(p)] for p in gates["params"])
    assert {names[id(p)] for p in rest["params"] + gates["params"]} == {
        name for name, p in model.named_parameters() if p.requires_grad
    }
    assert any("classifier" in names[id(p)] for p in rest["params"])


def test_a_fixed_pattern_is_trained_without_a_constraint(tmp_path: Path) -> None:
    model = make_model(sparsity_pattern="random")
    gates = {n: p.clone() for n, p in model.named_parameters() if "smat_gates" in n}
    trainer = make_trainer(tmp_path, model, max_steps=3)
    assert len(trainer.optimizer.param_groups) == 1
    trainer.train()
    assert callback_of(trainer).multipliers is None
    assert all(torch.equal(p, gates[n]) for n, p in model.named_parameters() if n in gates)


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="multiplier_lr must be above 0"):
        SparsityCallback(0.0)
