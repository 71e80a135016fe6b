"""Small files: they load like any adapter, give the same weights, cannot be trained, and are refused where damaged."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from smat_peft import SMATConfig, pack_adapter, save_task
from smat_peft.errors import CheckpointError, ConfigurationError
from smat_peft.few_shot import FewShotClassifier
from smat_peft.meta_tuning import MetaLearner, MetaTuningArguments
from smat_peft.sharing.packed import HEADER, describe_packed
from smat_peft.tuner.adapters import merged_sparsity, smat_layers, sparsity
from tests.sharing.hub_server import WRITER, Hub

PIXELS = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


# The client's own, where it uploads a large file without Xet.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(params=["element", "structured"])
def granularity(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(make_vit: Any, granularity: str) -> PeftModel:
    """Nine experts, two more than share a byte or a mask, with gates of every kind."""
    torch.manual_seed(0)
    config = SMATConfig(num_experts=9, init_weights=False, gate_init_std=4.0, gate_granularity=granularity)
    return get_peft_model(make_vit(), config).eval()


def task_weights(model: PeftModel) -> dict[str, Tensor]:
    model.adapt(PIXELS, LABELS)
    task = smat_layers(model)[0].state.task
    assert task is not None
    return {name: tensor.clone() for name, tensor in task.weights.items()}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=tolerance, msg=name)


def test_a_lossless_one_gives_the_same_task_weights_to_the_bit(model: PeftModel, make_vit: Any, tmp_path: Path) -> None:
    expected, counts = task_weights(model), (sparsity(model), merged_sparsity(model))
    header = pack_adapter(model, tmp_path, lossless=True)
    assert header["logit_error"] is None
    loaded = PeftModel.from_pretrained(make_vit(), tmp_path).eval()
    assert_equal(task_weights(loaded), expected)
    torch.testing.assert_close(sparsity(loaded), counts[0])
    assert merged_sparsity(loaded) == pytest.approx(counts[1])
    assert_equal(task_weights(model), expected)  # the model itself has not changed


def test_a_small_one_states_its_error_in_file_and_configuration(
    model: PeftModel, make_vit: Any, tmp_path: Path
) -> None:
    header = pack_adapter(model, tmp_path, images=PIXELS)
    assert 0 < header["logit_error"] < 1e-2
    assert header["measured_on"] == "6 images of 16 pixels"
    assert "gate logits" in header["left_out"]
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        assert json.loads(file.metadata()[HEADER]) == header
    assert SMATConfig.from_pretrained(str(tmp_path)).packed == header
    loaded = PeftModel.from_pretrained(make_vit(), tmp_path).eval()
    assert_equal(task_weights(loaded), task_weights(model), tolerance=1e-3)


def test_it_is_a_fraction_of_what_can_be_trained(model: PeftModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "trainable")
    pack_adapter(model, tmp_path / "packed")
    trainable, packed = (
        sum(each.nbytes for key, each in load_file(tmp_path / name / WEIGHTS).items() if ".smat_router." not in key)
        for name in ("trainable", "packed")
    )
    assert packed < trainable / 2


def test_an_error_above_the_tolerance_leaves_nothing(model: PeftModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="more than the tolerance of 1e-09"):
        pack_adapter(model, tmp_path / "packed", tolerance=1e-9)
    assert not (tmp_path / "packed").exists()


def test_it_loads_beside_another_adapter_and_each_stays_what_it_is(
    model: PeftModel, make_vit: Any, tmp_path: Path
) -> None:
    pack_adapter(model, tmp_path, lossless=True)
    expected = task_weights(model)
    torch.manual_seed(1)
    both = get_peft_model(make_vit(), SMATConfig(num_experts=2, init_weights=False)).eval()
    alone = task_weights(both)
    both.load_adapter(str(tmp_path), "packed")
    assert_equal(task_weights(both), alone)
    both.set_adapter("packed", inference_mode=True)
    assert_equal(task_weights(both), expected)
    both.set_adapter("default")
    both.delete_adapter("packed")
    assert not any("packed" in name for name, _ in both.named_buffers() if ".smat_packed." in name)


def test_it_is_copied_saved_and_merged_like_any_other(model: PeftModel, make_vit: Any, tmp_path: Path) -> None:
    pack_adapter(model, tmp_path / "one", lossless=True)
    loaded = PeftModel.from_pretrained(make_vit(), tmp_path / "one").eval()
    expected = task_weights(copy.deepcopy(loaded))
    loaded.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(make_vit(), tmp_path / "again").eval()
    assert_equal(task_weights(again), expected)
    with torch.no_grad():
        features = again(PIXELS).last_hidden_state
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(PIXELS).last_hidden_state, features, rtol=1e-5, atol=1e-5)


def test_other_types_of_the_backbone_leave_the_packed_values_as_they_are(
    model: PeftModel, make_vit: Any, tmp_path: Path
) -> None:
    pack_adapter(model, tmp_path, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(make_vit(), tmp_path).to(torch.bfloat16)
    layer = smat_layers(loaded)[0]
    assert all(packed.delta.dtype == torch.float32 for packed in layer.smat_packed["default"].values())
    assert all(weight.dtype == torch.bfloat16 for weight in loaded.interpolate(torch.full((9,), 1 / 9)).values())


def test_whoever_would_train_it_is_told_what_can_be_trained(model: PeftModel, make_vit: Any, tmp_path: Path) -> None:
    pack_adapter(model, tmp_path)
    with pytest.raises(ConfigurationError, match=r"packed for inference.*Train the adapter that it was packed from"):
        PeftModel.from_pretrained(make_vit(), tmp_path, is_trainable=True)
    loaded = PeftModel.from_pretrained(make_vit(), tmp_path)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with pytest.raises(ConfigurationError, match="packed for inference"):
        pack_adapter(loaded, tmp_path / "again")


def test_an_adapter_that_can_be_trained_is_not_written_over(model: PeftModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    before = (tmp_path / WEIGHTS).read_bytes()
    with pytest.raises(CheckpointError, match="an adapter that is not packed"):
        pack_adapter(model, tmp_path, lossless=True)
    assert (tmp_path / WEIGHTS).read_bytes() == before


def test_the_weights_of_a_task_load_as_an_adapter(model: PeftModel, make_vit: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"call model\.adapt"):
        save_task(model, tmp_path)
    expected = task_weights(model)
    save_task(model, tmp_path, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(make_vit(), tmp_path).eval()
    assert not any(".smat_router." in name for name, _ in loaded.named_parameters())
    assert_equal(dict(loaded.interpolate(torch.ones(1))), expected, tolerance=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(loaded(PIXELS)[0], model(PIXELS)[0], rtol=1e-4, atol=1e-4)


def test_a_task_that_cannot_be_told_or_held_is_not_written(model: PeftModel, tmp_path: Path) -> None:
    task_weights(model)
    with torch.no_grad():
        next(iter(smat_layers(model)[0].state.task.weights.values())).fill_(1e6)
    with pytest.raises(ConfigurationError, match=r"is not finite in torch\.float16"):
        save_task(model, tmp_path)
    assert "but for rounding to float32" in describe_packed(save_task(model, tmp_path, dtype=torch.float32))
    model.merge_adapter()
    with pytest.raises(ConfigurationError, match=r"unmerge_adapter\(\)"):
        save_task(model, tmp_path)


@pytest.mark.parametrize(
    ("version", "message"),
    [(2, "version 2 of the format.*install a newer one"), (0, "must be the header"), ("1", "must be the header")],
)
def test_a_newer_format_is_refused_with_its_version(
    model: PeftModel, make_vit: Any, tmp_path: Path, version: Any, message: str
) -> None:
    pack_adapter(model, tmp_path, lossless=True)
    config = json.loads((tmp_path / CONFIG).read_text())
    config["packed"]["format_version"] = version
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        PeftModel.from_pretrained(make_vit(), tmp_path)


@pytest.mark.parametrize("part", ["used", "open", "delta"])
def test_a_damaged_file_is_refused_by_parameter(model: PeftModel, make_vit: Any, tmp_path: Path, part: str) -> None:
    pack_adapter(model, tmp_path, lossless=True)
    tensors = load_file(tmp_path / WEIGHTS)
    key = next(key for key in tensors if key.endswith(f"smat_packed.weight.{part}") and ".q_proj." in key)
    save_file(tensors | {key: tensors[key][..., :-1].contiguous()}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"damaged, or for another model: .*q_proj.*weight"):
        PeftModel.from_pretrained(make_vit(), tmp_path)


def test_from_the_hub_it_classifies_as_where_it_was_packed(
    model: PeftModel, make_vit: Any, tmp_path: Path, hub: Hub
) -> None:
    make_vit().save_pretrained(tmp_path / "vit")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "vit")
    pack_adapter(model, tmp_path / "packed", images=PIXELS)
    local = PeftModel.from_pretrained(make_vit(), tmp_path / "packed").eval()
    local.push_to_hub("user/packed", token=WRITER)
    fetched = PeftModel.from_pretrained(make_vit(), "user/packed", token=WRITER).eval()
    answers = [FewShotClassifier(each).fit(PIXELS, LABELS).predict_proba(PIXELS) for each in (local, fetched)]
    assert (answers[0] == answers[1]).all()


def test_what_cannot_be_packed_is_one_clear_error(make_vit: Any, tmp_path: Path) -> None:
    model = get_peft_model(make_vit(), SMATConfig(num_experts=2, init_weights=False)).eval()
    with model.disable_adapter(), pytest.raises(ConfigurationError, match="adapters are disabled"):
        pack_adapter(model, tmp_path / "disabled")
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(CheckpointError, match="holds an adapter that is not packed"):
        pack_adapter(model, tmp_path, lossless=True)
    with model.task({}):
        save_task(model, tmp_path / "backbone")
    with pytest.raises(ConfigurationError, match=r"in torch.float32 are packed, .* in torch.bfloat16"):
        pack_adapter(model.bfloat16(), tmp_path / "half", lossless=True)


def test_a_packed_adapter_is_refused_by_the_learner(model: PeftModel, make_vit: Any, tmp_path: Path) -> None:
    pack_adapter(model, tmp_path, lossless=True)
    with pytest.raises(ConfigurationError, match="packed"):
        MetaLearner(PeftModel.from_pretrained(make_vit(), tmp_path), MetaTuningArguments())
