"""The run over many episodes: resuming, keeping the best, and failing clearly."""

from __future__ import annotations

import itertools
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from smat_peft import SMATConfig
from smat_peft.errors import CheckpointError, ConfigurationError, DataError, SmatError
from smat_peft.meta_tuning.arguments import MetaTuningArguments
from smat_peft.meta_tuning.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from smat_peft.meta_tuning.schedules import warmup_cosine
from smat_peft.meta_tuning.trainer import MetaTrainer
from smat_peft.meta_tuning.trial import measure_seconds
from smat_peft.tuner.adapters import find_router
from tests.faults import small_run
from tests.faults.small_run import NoiseEpisodes, noise_episode, stop_before, tiny_vit
from tests.golden_state import adapter_parameters

VIT = {"num_hidden_layers": 2}
SETTINGS = {"max_steps": 6, "episodes_per_step": 2, "warmup_steps": None, "save_total_limit": 2}
STEPS = dict.fromkeys(("checkpointing_steps", "validation_steps", "logging_steps"), 2)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Any:
    """A function that makes the trainer of a small run of six updates, in the folder `run` if in no other."""

    def make(train: Any = None, *, folder: str = "run", **changes: Any) -> MetaTrainer:
        return small_run.make_trainer(tmp_path / folder, train, **{"vit": VIT} | SETTINGS | STEPS | changes)

    return make


def adapter(trainer: MetaTrainer) -> dict[str, Tensor]:
    kinds = adapter_parameters(trainer.learner.model)
    return {f"{kind}/{name}": t.detach().clone() for kind, tensors in kinds.items() for name, t in tensors.items()}


@pytest.mark.parametrize("stop_at", [5, 8, 11])
def test_a_stopped_and_resumed_run_ends_bit_identical_to_an_undisturbed_one(make_trainer: Any, stop_at: int) -> None:
    undisturbed = make_trainer(folder="undisturbed")
    undisturbed.train()

    with pytest.raises(KeyboardInterrupt):
        make_trainer(stop_before(stop_at)).train()
    resumed = make_trainer(resume_from_checkpoint="latest")
    resumed.train()

    assert resumed.step == undisturbed.step == 6
    assert resumed.log == undisturbed.log
    before, after = adapter(undisturbed), adapter(resumed)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    ends = [load_checkpoint(checkpoints(t.output_dir)[-1])[0] for t in (undisturbed, resumed)]
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[0].items():  # the last state, not only the best: multipliers and moments, too
        assert torch.equal(ends[1][name], tensor), name


def test_seconds_of_training_are_those_of_all_sittings(make_trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 100_000, 100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
    make_trainer(max_steps=2).train()
    seconds = load_checkpoint(checkpoints(Path(make_trainer().output_dir))[-1])[1]["seconds"]
    assert seconds >= 100
    resumed = make_trainer(resume_from_checkpoint="latest", resume_anyway=True)
    assert resumed.seconds == seconds
    resumed.train()
    assert resumed.seconds >= seconds + 100


def test_training_moves_delta_gates_router_and_multipliers_and_nothing_of_the_backbone(make_trainer: Any) -> None:
    trainer = make_trainer(validation=[])
    before = adapter(trainer)
    base = {n: p.clone() for n, p in trainer.learner.model.named_parameters() if ".smat_" not in n}
    trainer.train()
    after = adapter(trainer)
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert not still
    assert trainer.learner.multipliers.abs().min() > 0
    for name, parameter in trainer.learner.model.named_parameters():
        if ".smat_" not in name:
            assert torch.equal(parameter, base[name]), name


def test_the_adapter_that_validated_best_is_the_one_that_is_left(make_trainer: Any) -> None:
    trainer = make_trainer()
    scores = iter([0.2, 0.9, 0.5])
    seen = []

    def validate() -> None:
        score = next(scores)
        trainer.learner.validate = lambda _episode: score
        seen.append(adapter(trainer))
        MetaTrainer._validate(trainer)

    trainer._validate = validate
    trainer.train()
    assert trainer.best.score == pytest.approx(0.9)
    for name, tensor in adapter(trainer).items():
        assert torch.equal(tensor, seen[1][name]), name
    assert not all(torch.equal(seen[1][name], seen[2][name]) for name in seen[1])


def test_the_best_adapter_of_an_aborted_run_is_not_taken_for_this_one_s(make_trainer: Any) -> None:
    trainer = make_trainer()
    save_checkpoint(trainer.output_dir / "best", 99, {"model/other": torch.zeros(1)}, {"score": 1.0})
    trainer.train()
    (best,) = checkpoints(trainer.output_dir / "best")
    assert best.name != "checkpoint-99"


def test_the_saved_adapter_loads_into_the_backbone_and_gives_the_same_task(make_trainer: Any) -> None:
    trainer = make_trainer()
    trainer.train()
    trainer.save_model()
    loaded = PeftModel.from_pretrained(tiny_vit(**VIT), trainer.output_dir).eval()
    model, episode = trainer.learner.model.eval(), noise_episode(7)
    for each in (model, loaded):
        each.adapt(episode.support, episode.support_labels)
    with torch.no_grad():
        assert torch.equal(loaded.features(episode.query), model.features(episode.query))


def test_an_update_whose_loss_is_not_finite_is_left_out(make_trainer: Any) -> None:
    trainer = make_trainer(NoiseEpisodes(broken=range(4, 6)), validation=[])
    trainer.train()
    assert trainer.skipped == 1
    assert all(torch.isfinite(tensor).all() for tensor in adapter(trainer).values())


def test_several_such_updates_in_a_row_stop_the_run_and_name_the_episodes(make_trainer: Any) -> None:
    with pytest.raises(SmatError, match=r"3 updates in a row, those of training episodes 4 to 9 of seed 0"):
        make_trainer(NoiseEpisodes(broken=range(4, 12)), max_skipped_steps=3).train()


def test_an_output_directory_that_holds_another_run_is_refused(make_trainer: Any) -> None:
    make_trainer(max_steps=2).train()
    with pytest.raises(CheckpointError, match="holds another run"):
        make_trainer(max_steps=2).train()


def test_resuming_with_other_arguments_is_refused_and_names_them(make_trainer: Any) -> None:
    make_trainer().train()
    with pytest.raises(CheckpointError, match=r"delta_lr was 0\.1, is 0\.2"):
        make_trainer(delta_lr=0.2, resume_from_checkpoint="latest").train()


def test_a_damaged_checkpoint_is_refused(make_trainer: Any) -> None:
    trainer = make_trainer()
    trainer.train()
    path = checkpoints(trainer.output_dir)[-1] / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not what was written"):
        make_trainer(resume_from_checkpoint="latest").train()


def test_only_the_newest_checkpoints_are_kept(make_trainer: Any) -> None:
    trainer = make_trainer(save_total_limit=1)
    trainer.train()
    assert [path.name for path in checkpoints(trainer.output_dir)] == ["checkpoint-6"]


def test_an_old_checkpoint_that_was_moved_elsewhere_is_let_go_of(make_trainer: Any, tmp_path: Path) -> None:
    make_trainer(max_steps=2).train()
    trainer = make_trainer(save_total_limit=1, resume_from_checkpoint="latest", resume_anyway=True)
    old, elsewhere = trainer.output_dir / "checkpoint-2", tmp_path / "elsewhere"
    old.rename(elsewhere)
    old.symlink_to(elsewhere)
    trainer.train()
    assert [path.name for path in trainer.output_dir.glob("*checkpoint-*")] == ["checkpoint-6"]
    assert elsewhere.is_dir()


def test_trying_an_update_for_its_time_changes_nothing(make_trainer: Any) -> None:
    trainer = make_trainer()
    before = adapter(trainer)
    assert measure_seconds(trainer) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter(trainer).items())
    assert trainer.learner.router.episodes_seen == 0
    assert all(parameter.grad is None for parameter in trainer.learner.parameters())


def test_dense_meta_tuning_learns_the_delta_alone(make_trainer: Any) -> None:
    trainer = make_trainer(experts={"num_experts": 1, "sparsity_pattern": "dense"}, validation=[])
    assert trainer.learner.router is None
    gates = [g.clone() for g in adapter_gates(trainer)]
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(gates, adapter_gates(trainer), strict=True))
    assert any(name.endswith("smat_delta.default.weight") for name in trainer.groups.delta)
    assert not trainer.groups.gates
    assert not trainer.groups.multipliers


def adapter_gates(trainer: MetaTrainer) -> list[Tensor]:
    return [p for name, p in trainer.learner.model.named_parameters() if "smat_gates" in name]


def test_what_would_be_trainable_and_never_trained_is_refused(make_trainer: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"layernorm.*is trainable, too: leave out modules_to_save"):
        make_trainer(experts={"modules_to_save": ["layernorm"]})


def test_a_backbone_in_half_precision_is_refused(make_vit: Any) -> None:
    model = get_peft_model(make_vit().bfloat16(), SMATConfig(num_experts=2))
    with pytest.raises(ConfigurationError, match=r"round away in torch\.bfloat16: load it with dtype=torch\.float32"):
        MetaTrainer(model, MetaTuningArguments(), NoiseEpisodes())


def test_missing_the_target_sparsity_is_warned_of(make_trainer: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        make_trainer(experts={"target_sparsity": 0.9}, gate_lr=0.0).train()
    assert "the target was 0.900" in caplog.text


def test_the_learning_rate_rises_then_falls_to_nothing(make_trainer: Any) -> None:
    trainer = make_trainer(max_steps=100, warmup_ratio=0.1)
    factors = [trainer.learning_rate_factor(step) for step in range(101)]
    assert [factors[step] for step in (0, 5, 10, 100)] == pytest.approx([0, 0.5, 1, 0])
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))


def test_after_the_end_of_the_schedule_nothing_is_learned(make_trainer: Any) -> None:
    trainer = make_trainer(max_steps=100, warmup_steps=10, lr_decay_steps=40)
    assert [trainer.learning_rate_factor(step) for step in (39, 40, 70, 100)] == pytest.approx([2.74e-3, 0, 0, 0], 1e-2)
    with pytest.raises(ConfigurationError, match="--lr_decay_steps must be above the 10 of the warm-up, got 10"):
        make_trainer(max_steps=100, lr_decay_steps=10)


def test_a_trainer_of_no_update_leaves_the_router_as_it_is(make_trainer: Any) -> None:
    trainer = make_trainer(max_steps=0)
    assert trainer.learner.config.router_temperature_episodes == SMATConfig().router_temperature_episodes
    assert trainer.learner.router.temperature_episodes == SMATConfig().router_temperature_episodes


def test_the_temperature_falls_over_its_share_of_the_run_and_is_saved_with_the_adapter(make_trainer: Any) -> None:
    trainer = make_trainer(max_steps=50, temperature_ratio=0.36)
    assert trainer.learner.config.router_temperature_episodes == 36
    router = trainer.learner.router
    router.episodes_seen.fill_(18)
    assert router.temperature == pytest.approx((5 + 0.5) / 2)
    router.episodes_seen.fill_(36)
    assert router.temperature == 0.5


def test_the_authors_schedule_is_the_same_function_in_epochs() -> None:
    golden = json.loads((Path(__file__).parents[1] / "golden/authors/schedule.json").read_text())
    for epoch, factor in enumerate(golden["factor"]):
        assert warmup_cosine(epoch, 5, 50) == pytest.approx(factor, abs=1e-12)


def test_learning_rates_fall_to_nothing_at_the_end_in_any_unit_of_time() -> None:
    for unit in (1, 100):
        shares = [warmup_cosine(unit * share, unit * 0.05, unit) for share in (0.0, 0.025, 0.05, 0.525, 1.0)]
        assert shares == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_the_authors_temperature_is_the_default_of_the_router(make_vit: Any) -> None:
    golden = json.loads((Path(__file__).parents[1] / "golden/authors/schedule.json").read_text())
    router = find_router(get_peft_model(make_vit(), SMATConfig(num_experts=2))).router("default")
    for episodes, temperature in golden["temperature"].items():
        router.episodes_seen.fill_(int(episodes))
        assert router.temperature == pytest.approx(temperature)


def test_arguments_out_of_range_are_named() -> None:
    with pytest.raises(ConfigurationError, match="--distillation_weight must be in"):
        MetaTuningArguments(distillation_weight=1.5)


def test_too_few_episodes_are_one_clear_error(make_trainer: Any, tmp_path: Path) -> None:
    few = [noise_episode(0), noise_episode(1)]
    with pytest.raises(DataError, match=r"there are 2 training episodes, and this run takes 3 \(max_steps x"):
        make_trainer(few, max_steps=3, episodes_per_step=1).train()
    assert not (tmp_path / "run").exists()


def test_an_index_error_of_a_data_set_is_shown_as_it_is(make_trainer: Any) -> None:
    def fail(_: int) -> None:
        raise IndexError("a fault of the images")

    with pytest.raises(IndexError, match="a fault of the images"):
        make_trainer(NoiseEpisodes(fail), max_steps=1, episodes_per_step=1).train()
