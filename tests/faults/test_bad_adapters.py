"""Adapters that are damaged, of something else, or meant to do harm: each is one error that names file and field."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import Tensor

from smat_peft import SMATConfig
from smat_peft.errors import CheckpointError
from smat_peft.few_shot.loading import load_adapter
from smat_peft.sharing.packed import pack_adapter
from tests.faults.small_run import EXPERTS, tiny_vit

Tensors = dict[str, Tensor]
Change = Callable[[Path], object]
LAYER = "base_model.model.embeddings.patch_embeddings.projection"
DELTA, GATES, PACKED = (f"{LAYER}.smat_{part}.weight" for part in ("delta", "gates", "packed"))
ROUTER = "base_model.model.smatrouter.smat_router.keys"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    torch.manual_seed(0)
    model = get_peft_model(tiny_vit(), SMATConfig(**EXPERTS, init_weights=False))
    for name, parameter in model.named_parameters():
        if ".smat_gates." in name:
            parameter.data.mul_(20)  # some are open, some closed, some in between
    model.save_pretrained(folder / "trainable", save_embedding_layers=False)
    pack_adapter(model, folder / "packed", lossless=True)
    for kind in ("trainable", "packed"):
        load_adapter(tiny_vit(), folder / kind)
    return folder


# ----- changes -----


def written(data: bytes) -> Change:
    return lambda folder: (folder / SAFETENSORS_WEIGHTS_NAME).write_bytes(data)


def cut(size: int) -> Change:
    return lambda folder: os.truncate(folder / SAFETENSORS_WEIGHTS_NAME, size)


def flipped(folder: Path) -> None:
    """A bit of the header's description of the first tensor."""
    file = folder / SAFETENSORS_WEIGHTS_NAME
    data = bytearray(file.read_bytes())
    data[data.index(b'"shape":[') + 9] ^= 0x40
    file.write_bytes(data)


def header(entries: dict[str, Any]) -> Change:
    text = json.dumps(entries).encode()
    return written(struct.pack("<Q", len(text)) + text + b"\0" * 8)


def with_tensors(change: Callable[[Tensors], object]) -> Change:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
        change(tensors)
        save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME)

    return apply


def without(name: str) -> Change:
    return with_tensors(lambda tensors: tensors.pop(name))


def replaced(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    return with_tensors(lambda tensors: tensors.update({name: change(tensors[name]).contiguous()}))


def one_bit_more(tensor: Tensor) -> Tensor:
    return torch.cat([tensor[:-1], tensor[-1:] ^ 1])


def configured(text: str) -> Change:
    return lambda folder: (folder / CONFIG_NAME).write_text(text)


def setting(**settings: Any) -> Change:
    def apply(folder: Path) -> None:
        file = folder / CONFIG_NAME
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    return apply


class Harmful:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (os.environ["HARM"],)


def harmful_pickle(name: str) -> Change:
    def apply(folder: Path) -> None:
        (folder / SAFETENSORS_WEIGHTS_NAME).unlink()
        torch.save({"weight": Harmful()}, folder / name)

    return apply


OVERLAP = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
}
FILES: dict[str, tuple[Change, str]] = {
    "no file": (lambda folder: (folder / SAFETENSORS_WEIGHTS_NAME).unlink(), "the folder has no adapter_model"),
    "empty": (cut(0), "header too small"),
    "cut in the header": (cut(50), "invalid header length"),
    "cut in the tensors": (cut(5000), "incomplete metadata|invalid header length"),
    "a bit of the header": (flipped, "Error while deserializing header"),
    "a pickle by another name": (written(pickle.dumps({"weight": 1})), "header too large"),
    "a harmful pickle by another name": (harmful_pickle(SAFETENSORS_WEIGHTS_NAME), "header too large"),
    "a harmful pickle": (harmful_pickle(WEIGHTS_NAME), "Weights only load failed"),
    "a header of 4 EiB": (written(struct.pack("<Q", 2**62) + b"{}"), "header too large"),
    "a header that is no JSON": (written(struct.pack("<Q", 8) + b"no json!"), "invalid JSON"),
    "tensors that overlap": (header(OVERLAP), "invalid offset for tensor"),
    "a tensor beyond the end": (
        header({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}),
        "incomplete metadata",
    ),
    "a shape that overflows": (
        header({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}),
        "overflow|invalid shape",
    ),
    "other tensors": (
        with_tensors(lambda tensors: (tensors.clear(), tensors.update(x=torch.ones(1)))),
        "adapter_model.safetensors lacks|the packed adapter is damaged, or for another model: .*it lacks",
    ),
    "a tensor more": (
        with_tensors(lambda tensors: tensors.update({"base_model.model.other": torch.ones(1)})),
        "is of another model or adapter: this one has no base_model.model.other",
    ),
    "no router": (without(ROUTER), f"adapter_model.safetensors lacks {ROUTER}"),
    "a router of another width": (replaced(ROUTER, lambda keys: keys[:, :-1]), "size mismatch for .*keys"),
    "a router that is not finite": (replaced(ROUTER, lambda keys: keys / 0), f"infinite numbers or NaN in {ROUTER}"),
    "a router of whole numbers": (replaced(ROUTER, lambda keys: keys.int()), f"holds whole numbers in {ROUTER}"),
}
TRAINABLE: dict[str, tuple[Change, str]] = {
    "no delta": (without(DELTA), f"adapter_model.safetensors lacks {DELTA}"),
    "a delta of another shape": (
        replaced(DELTA, lambda delta: delta[..., :1]),
        "size mismatch for .*smat_delta.*weight",
    ),
    "a delta that is no number": (
        replaced(DELTA, lambda delta: delta * torch.nan),
        f"infinite numbers or NaN in {DELTA}",
    ),
    "gates of fewer experts": (
        replaced(GATES, lambda gates: gates[:1]),
        "size mismatch for .*smat_gates.*weight",
    ),
}
PACKED_FILES: dict[str, tuple[Change, str]] = {
    "no masks": (without(f"{PACKED}.used"), "weight: it lacks used"),
    "no values": (without(f"{PACKED}.values"), "weight: it lacks values"),
    "masks of another size": (replaced(f"{PACKED}.used", lambda used: used[:, :0]), "used has the shape"),
    "masks that are no bytes": (replaced(f"{PACKED}.used", lambda used: used.float()), "used is of type torch.float32"),
    "a position used that nobody opens": (replaced(f"{PACKED}.open", torch.zeros_like), "no expert is open"),
    "masks that end early": (replaced(f"{PACKED}.open", lambda bits: bits[:-1]), r"open has \d+ bytes instead of"),
    "values one too few": (replaced(f"{PACKED}.values", lambda values: values[:-1]), "values has .* another number"),
    "values out of range": (replaced(f"{PACKED}.values", lambda values: values + 2), "values are not between 0 and 1"),
    "values that are no numbers": (
        replaced(f"{PACKED}.values", lambda values: values * torch.nan),
        "values are not between 0 and 1",
    ),
    "a mask that disagrees with values": (replaced(f"{PACKED}.partial", one_bit_more), "values has .* another number"),
    "a delta one too long": (
        replaced(f"{PACKED}.delta", lambda delta: torch.cat([delta, delta[:1]])),
        r"delta has \d+ elements instead of",
    ),
    "a delta of whole numbers": (
        replaced(f"{PACKED}.delta", lambda delta: delta.int()),
        "delta is of type torch.int32",
    ),
    "a delta that is not finite": (replaced(f"{PACKED}.delta", lambda delta: delta / 0), "infinite numbers or NaN"),
    "a newer format": (setting(packed={"format_version": 99}), "version 99 of the format.*install a newer one"),
    "no format": (setting(packed={}), "packed must be the header of a packed adapter"),
    "more experts than packed": (setting(num_experts=9), "weight: used has the shape"),
}
CONFIGURATIONS: dict[str, tuple[Change, str]] = {
    "no file": (lambda folder: (folder / CONFIG_NAME).unlink(), "there is no adapter_config.json"),
    "no JSON": (configured("{"), "adapter_config.json cannot be read as JSON"),
    "no text": (lambda folder: (folder / CONFIG_NAME).write_bytes(b"\xff\xfe{"), "adapter_config.json cannot be read"),
    "a list": (configured("[]"), "adapter_config.json: peft_type is None"),
    "nested too deep": (configured("[" * 100_000), "adapter_config.json cannot be read as JSON"),
    "no method": (setting(peft_type=None), "adapter_config.json: peft_type is None, which PEFT does not know"),
    "a method that nobody knows": (setting(peft_type="NONE"), "peft_type is 'NONE', which PEFT does not know"),
    "another method": (setting(peft_type="LORA"), "Target module"),
    "a setting of a newer version": (setting(gate_colour="red"), r"\['gate_colour'\] for class SMATConfig"),
    "no experts": (setting(num_experts=0), "SMATConfig: num_experts must be at least 1, got 0"),
    "half an expert": (setting(num_experts=1.5), "num_experts must be a whole number, got 1.5"),
    "more experts than memory": (setting(num_experts=10**12), "allocate memory|overflow"),
    "too sparse": (setting(target_sparsity=5), r"target_sparsity must be in \[0, 1\), got 5"),
    "not a number": (setting(target_sparsity=float("nan")), r"target_sparsity must be in \[0, 1\), got nan"),
    "a text for a number": (setting(gate_init_std="x"), "gate_init_std must be a number, got 'x'"),
    "one temperature": (setting(router_temperature=[1]), r"router_temperature must be two numbers.* got \[1\]"),
    "a router without end": (setting(router_mlp_ratio=float("inf")), "router_mlp_ratio must be above 0 and finite"),
    "a number for a name": (setting(feature=3), "feature must be the name of a feature, got 3"),
    "an unknown choice": (setting(router_pooling="sum"), "router_pooling must be one of mean, first, got 'sum'"),
    "a pattern that is none": (setting(target_modules="("), "unterminated subpattern"),
    "modules that are not there": (setting(target_modules=["nothing"]), "Target modules {'nothing'} not found"),
    "a task that PEFT does not know": (setting(task_type="NONE"), "Invalid task type: 'NONE'"),
}
CASES = [
    *(
        pytest.param(kind, *case, id=f"{kind}: {name}")
        for kind in ("trainable", "packed")
        for name, case in FILES.items()
    ),
    *(pytest.param("trainable", *case, id=name) for name, case in (TRAINABLE | CONFIGURATIONS).items()),
    *(pytest.param("packed", *case, id=name) for name, case in PACKED_FILES.items()),
]


@pytest.mark.filterwarnings("ignore:Found missing adapter keys", "ignore:Unexpected keyword .* LoraConfig")
@pytest.mark.parametrize(("kind", "change", "message"), CASES)
def test_it_is_one_error_that_says_what_is_wrong(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, change: Change, message: str
) -> None:
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    folder = Path(shutil.copytree(good / kind, tmp_path / "adapter"))
    change(folder)
    with pytest.raises(CheckpointError, match=rf"cannot load adapter '.*adapter' on backbone .*({message})") as raised:
        load_adapter(tiny_vit(), folder)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "harm").exists()


def test_a_harmful_pickle_would_do_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    pickle.loads(pickle.dumps(Harmful()))
    assert (tmp_path / "harm").is_dir()
