"""The authors' checkpoints become adapters that give the authors' numbers, and what does not fit is said at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import ViTConfig, ViTModel

from smat_peft import load_reference_checkpoint
from smat_peft.errors import CheckpointError, ConfigurationError
from smat_peft.experts.gates import GATE_LIMIT
from smat_peft.experts.prototypes import class_means
from smat_peft.few_shot.adaptation import classify_episode
from smat_peft.sharing.reference import convert_checkpoint
from smat_peft.sharing.reference_files import ReferenceCheckpoint
from smat_peft.tuner.adapters import adapter_router
from tests.golden_state import adapter_parameters, distance, numbers, section
from tests.sharing.reference_state import backbone, episode, state_dict

KEYS, TOKENS = "mask_hypernet.masks_keys", "mask_hypernet.skills_tokens"
HUB_QKV = "net.encoder.blocks.1.attn.qkv.weight"


def convert(state: dict[str, Tensor], form: str = "hub", **settings: Any) -> PeftModel:
    return convert_checkpoint(ReferenceCheckpoint("smat.pt", state), backbone(form), **settings)[0]


def logits(model: PeftModel, index: int) -> tuple[Tensor, Tensor | None]:
    support, labels, query = episode(index)
    return classify_episode(model, support, labels, query)


@pytest.fixture(params=["pt", "safetensors"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A function that saves a state dict, as the authors' trainer does or as safetensors."""

    def save(state: dict[str, Tensor]) -> Path:
        path = tmp_path / f"smat.{request.param}"
        if request.param == "pt":
            training = {"optimizer": {"state": {0: torch.zeros(2)}, "param_groups": [{"lr": 0.1}]}, "loss_scaler": {}}
            torch.save({"model": state, "scheduler": {"last_epoch": 3}, **training}, path)
        else:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
        return path

    return save


@pytest.mark.parametrize("index", [0, 1])
def test_a_torch_hub_checkpoint_gives_the_authors_logits(saved: Any, index: int) -> None:
    golden = section(numbers("authors/evaluation"), f"ep{index}")
    model = load_reference_checkpoint(saved(state_dict("hub")), backbone("hub"))
    ours, weights = logits(model, index)
    assert weights is not None
    assert distance(weights, golden["router_weights"]) < 1e-5
    assert distance(ours, golden["query_logits"]) < 1e-5


@pytest.mark.parametrize("index", [0, 1])
@torch.no_grad()
def test_the_router_gives_the_authors_numbers_before_they_saturate(index: int) -> None:
    golden = section(numbers("authors/evaluation"), f"ep{index}")
    model, (support, labels, _) = convert(state_dict("hub")), episode(index)
    router = adapter_router(model)
    assert router is not None
    assert router.temperature == pytest.approx(float(golden["temperature"]))
    with model.task({}):
        prototypes = class_means(model.features(support), labels)
    assert distance(router.embed(prototypes), golden["task_embed"][0]) < 1e-5
    assert distance(router(prototypes).logits, golden["router_logits"]) < 1e-5


def test_a_transformers_checkpoint_gives_the_authors_zero_shot_logits(saved: Any) -> None:
    model = load_reference_checkpoint(saved(state_dict("hf")), backbone("hf"))
    assert distance(logits(model, 1)[0], numbers("authors/finetune_lora_hf")["zero_shot"]) < 1e-5


def test_the_names_and_the_order_of_transformers_4_give_the_same_adapter() -> None:
    older, newer = (adapter_parameters(convert(state_dict(form), "hf")) for form in ("hf4", "hf"))
    for kind, tensors in newer.items():
        assert all(torch.equal(older[kind][name], tensor) for name, tensor in tensors.items()), kind
    assert convert(state_dict("hf4"), "hf").peft_config["default"].feature == "reference_cls"


@pytest.mark.parametrize("index", [0, 1])
def test_a_saved_adapter_gives_the_authors_logits_again(index: int, tmp_path: Path) -> None:
    convert(state_dict("hub")).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(backbone("hub"), tmp_path)
    assert distance(logits(model, index)[0], numbers("authors/evaluation")[f"ep{index}/query_logits"]) < 1e-5


def test_gates_come_within_their_limits() -> None:
    state = state_dict("hub") | {"mask_hypernet.log_alphas.3": torch.full((32, 4), 9.0)}
    gates = adapter_parameters(convert(state))["gates"]["embeddings.patch_embeddings.projection.bias"]
    assert torch.equal(gates, torch.full((4, 32), GATE_LIMIT))


def test_every_key_is_in_the_report_once() -> None:
    state = state_dict("hub") | {"extra": torch.zeros(1)}
    checkpoint = ReferenceCheckpoint("smat.pt", state, ("optimizer",))
    _, report = convert_checkpoint(checkpoint, backbone("hub"))
    assert sorted([*report.used, *report.ignored]) == sorted([*state, "optimizer"])
    assert not report.missing
    assert report.used["delta_hypernet.phis.1"] == "delta of embeddings.position_embeddings"
    assert report.ignored["extra"] == "unknown"
    assert {"delta_hypernet.phis.30", "mask_hypernet.log_alphas.30", "net.head.weight"} < set(report.ignored)
    printed = str(report)
    assert all(key in printed for key in [*state, "optimizer"])
    assert "113 keys used, 6 keys ignored, 0 keys missing" in printed


def test_another_epsilon_of_the_layer_norms_is_noted() -> None:
    checkpoint = ReferenceCheckpoint("smat.pt", state_dict("hub"))
    model = backbone("hub")
    model.config.layer_norm_eps = 1e-12
    notes = convert_checkpoint(checkpoint, model)[1].notes
    assert any("add 1e-06 to the variance and this backbone's add 1e-12" in note for note in notes)
    assert not any("variance" in note for note in convert_checkpoint(checkpoint, backbone("hub"))[1].notes)


def without_router_tokens() -> dict[str, Tensor]:
    state = state_dict("hub")
    return {key: tensor for key, tensor in state.items() if key not in (KEYS, TOKENS)}


def test_without_keys_and_skill_tokens_the_reason_is_said() -> None:
    with pytest.raises(CheckpointError, match=r"no .*masks_keys and no .*skills_tokens: .* never saves them on a CUDA"):
        convert(without_router_tokens())


def test_keys_and_skill_tokens_can_be_given() -> None:
    state = state_dict("hub")
    given = {"masks_keys": state[KEYS], "skills_tokens": state[TOKENS]}
    checkpoint = ReferenceCheckpoint("smat.pt", without_router_tokens())
    model, report = convert_checkpoint(checkpoint, backbone("hub"), router_tensors=given)
    assert report.missing == {KEYS: "given by the caller", TOKENS: "given by the caller"}
    assert distance(logits(model, 0)[0], numbers("authors/evaluation")["ep0/query_logits"]) < 1e-5


@pytest.mark.parametrize("state", [state_dict("hub"), without_router_tokens()], ids=["saved", "never saved"])
def test_experts_are_mixed_evenly_when_told_to(state: dict[str, Tensor]) -> None:
    model, report = convert_checkpoint(ReferenceCheckpoint("smat.pt", state), backbone("hub"), mix_evenly=True)
    weights = logits(model, 1)[1]  # which is otherwise for one of the experts alone
    assert weights is not None
    torch.testing.assert_close(weights, torch.full((4,), 0.25))
    assert KEYS in (report.missing if KEYS not in state else report.ignored)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"router_tensors": {"masks_keys": torch.zeros(4, 32)}}, "router_tensors holds mask_hypernet.masks_keys"),
        ({"router_tensors": {"keys": torch.zeros(4, 32)}}, "router_tensors holds mask_hypernet.keys"),
    ],
)
def test_router_tensors_that_are_not_needed_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        convert(state_dict("hub"), **settings)


def test_routing_and_an_even_mix_are_not_asked_for_together() -> None:
    with pytest.raises(ConfigurationError, match="give one of them"):
        convert(without_router_tokens(), router_tensors={"masks_keys": torch.zeros(4, 32)}, mix_evenly=True)


def test_given_tensors_of_another_shape_are_refused() -> None:
    given = {"masks_keys": torch.zeros(8, 32), "skills_tokens": torch.zeros(1, 4, 32)}
    with pytest.raises(CheckpointError, match=r"masks_keys \(keys of the router\): \[8, 32\], not \[4, 32\]"):
        convert(without_router_tokens(), router_tensors=given)


def test_all_wrong_shapes_are_in_one_error() -> None:
    state = state_dict("hub")
    state |= {HUB_QKV: torch.zeros(32, 32), "delta_hypernet.phis.1": torch.zeros(1, 5, 32)}
    state |= {"mask_hypernet.log_alphas.0": torch.zeros(4, 1, 1, 32), "num_metaupdates": torch.zeros(2)}
    with pytest.raises(CheckpointError) as caught:
        convert(state)
    first, *lines = str(caught.value).splitlines()
    assert first == "smat.pt does not fit the ViTModel:"
    projections = ", ".join(f"layers.1.attention.{part}_proj.weight" for part in "qkv")
    assert sorted(line.strip() for line in lines) == [
        "delta_hypernet.phis.1 (delta of embeddings.position_embeddings): [1, 5, 32], not [1, 37, 32]",
        "mask_hypernet.log_alphas.0 (gates of embeddings.cls_token): [4, 1, 1, 32], not [1, 1, 32, 4]",
        f"{HUB_QKV} (compared with {projections}): [32, 32], not [96, 32]",
        "num_metaupdates (episodes_seen of the router): [2], not [1]",
    ]


def test_a_missing_block_is_listed_key_by_key() -> None:
    lost = range(16, 28)  # numbers of block 1's parameters
    state = {
        key: tensor
        for key, tensor in state_dict("hub").items()
        if "blocks.1." not in key and not any(key.endswith((f"phis.{n}", f"log_alphas.{n}")) for n in lost)
    }
    with pytest.raises(CheckpointError) as caught:
        convert(state)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 3 * len(lost)
    assert all(line.endswith("missing") and "layers.1." in line for line in lines)


def test_a_backbone_of_another_depth_does_not_fit() -> None:
    settings: dict[str, Any] = backbone("hub").config.to_dict()
    shallow = ViTModel(ViTConfig(**settings | {"num_hidden_layers": 1}), add_pooling_layer=False)
    with pytest.raises(CheckpointError) as caught:
        convert_checkpoint(ReferenceCheckpoint("smat.pt", state_dict("hub")), shallow)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 3 * 12
    assert all(line.endswith("has no place in the backbone") for line in lines)


def test_a_parameter_that_the_reference_s_vit_lacks_does_not_fit() -> None:
    model: Any = backbone("hub")
    model.embeddings.distillation_token = torch.nn.Parameter(torch.zeros(1, 1, 32))
    with pytest.raises(CheckpointError, match=r"embeddings\.distillation_token of the backbone: has no place"):
        convert_checkpoint(ReferenceCheckpoint("smat.pt", state_dict("hub")), model)


def test_another_backbone_of_the_same_shape_is_refused() -> None:
    torch.manual_seed(0)
    other = ViTModel(backbone("hub").config, add_pooling_layer=False)
    with pytest.raises(CheckpointError, match=r"meta-tuned from another backbone: \d+ of 30 parameters differ"):
        convert_checkpoint(ReferenceCheckpoint("smat.pt", state_dict("hub")), other)


def test_a_refused_checkpoint_leaves_the_backbone_alone() -> None:
    model = backbone("hub")
    before = dict(model.named_modules())
    with pytest.raises(CheckpointError):
        convert_checkpoint(ReferenceCheckpoint("smat.pt", state_dict("hub") | {HUB_QKV: torch.zeros(1)}), model)
    assert dict(model.named_modules()) == before


def test_an_unused_pooler_and_half_precision_are_no_obstacle() -> None:
    state = state_dict("hub")
    with_pooler = ViTModel(backbone("hub").config)
    with_pooler.load_state_dict(backbone("hub").state_dict(), strict=False)
    model, _ = convert_checkpoint(ReferenceCheckpoint("smat.pt", state), with_pooler.eval().bfloat16())
    assert logits(model, 0)[0].shape == (25, 5)


def test_a_backbone_that_is_no_vit_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be transformers' ViT without a head"):
        convert_checkpoint(ReferenceCheckpoint("smat.pt", state_dict("hub")), torch.nn.Linear(2, 2))


def test_a_state_dict_of_something_else_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint of the authors' code: .* it holds layer\.weight"):
        convert({"layer.weight": torch.zeros(2)})
