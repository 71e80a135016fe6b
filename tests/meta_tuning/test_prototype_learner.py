"""Meta-tuning an adapter that has no experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from smat_peft.few_shot.lora import lora_settings
from smat_peft.meta_tuning.arguments import MetaTuningArguments
from smat_peft.meta_tuning.prototype_learner import PrototypeLearner
from smat_peft.meta_tuning.trainer import MetaTrainer
from tests.faults.small_run import NoiseEpisodes, noise_episode, stop_before


@pytest.fixture
def lora(make_vit: Any) -> PeftModel:
    torch.manual_seed(0)
    backbone = make_vit()
    return get_peft_model(backbone, LoraConfig(**lora_settings(backbone)))


def arguments(tmp_path: Path, **changes: Any) -> MetaTuningArguments:
    settings = {"output_dir": str(tmp_path / "run"), "max_steps": 6, "episodes_per_step": 2, "delta_lr": 1e-2}
    settings |= {"checkpointing_steps": 3, "validation_steps": 3, "logging_steps": 1, "warmup_steps": 1}
    return MetaTuningArguments(**settings | changes)


def learned(model: PeftModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_the_loss_is_the_cross_entropy_of_the_prototypes_of_each_episode(lora: PeftModel, tmp_path: Path) -> None:
    episodes = [noise_episode(0), noise_episode(1)]
    loss = PrototypeLearner(lora, arguments(tmp_path))(episodes)["query_ce"]
    expected = 0.0
    for episode in episodes:
        features = [
            lora(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]
            for pixels in (episode.support, episode.query)
        ]
        means = torch.stack([features[0][episode.support_labels == c].mean(0) for c in range(3)])
        logits = 10 * F.normalize(features[1], dim=-1) @ F.normalize(means, dim=-1).T
        expected += F.cross_entropy(logits, episode.query_labels) / 2
    torch.testing.assert_close(loss, torch.as_tensor(expected), rtol=1e-5, atol=1e-6)


def test_only_lora_is_trained_and_it_gets_better(lora: PeftModel, tmp_path: Path) -> None:
    frozen = {name: p.detach().clone() for name, p in lora.named_parameters() if not p.requires_grad}
    before = learned(lora)
    same = [noise_episode(0)] * 40
    trainer = MetaTrainer(lora, arguments(tmp_path, max_steps=20, delta_lr=1e-3), same, [noise_episode(100)])
    log = trainer.train()
    assert all(torch.equal(p, frozen[name]) for name, p in lora.named_parameters() if name in frozen)
    assert all(not torch.equal(p, before[name]) for name, p in learned(lora).items())
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert (tmp_path / "run" / "best").is_dir()


def test_a_run_that_was_stopped_ends_as_one_that_was_not(make_vit: Any, tmp_path: Path) -> None:
    def make(folder: str, episodes: NoiseEpisodes, **changes: Any) -> MetaTrainer:
        torch.manual_seed(0)
        backbone = make_vit()
        model = get_peft_model(backbone, LoraConfig(**lora_settings(backbone)))
        return MetaTrainer(model, arguments(tmp_path / folder, **changes), episodes)

    whole = make("whole", NoiseEpisodes())
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        make("cut", stop_before(9)).train()
    resumed = make("cut", NoiseEpisodes(), resume_from_checkpoint="latest")
    assert resumed.step == 3
    resumed.train()
    ours = learned(resumed.learner.model)
    assert all(torch.equal(p, ours[name]) for name, p in learned(whole.learner.model).items())
