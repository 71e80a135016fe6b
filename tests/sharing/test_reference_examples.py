"""The examples convert a checkpoint, say what became of each key, and measure it; what cannot be is one error."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image
from transformers import ViTImageProcessorPil

from smat_peft.few_shot.adaptation import classify_episode
from smat_peft.few_shot.loading import load_model
from tests.golden_state import distance, numbers
from tests.sharing.reference_state import backbone, episode, state_dict

EXAMPLES = Path(__file__).parents[2] / "examples"
ROUTER_TENSORS = ("mask_hypernet.masks_keys", "mask_hypernet.skills_tokens")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a checkpoint, one without the router's tokens, the backbone, and two domains."""
    monkeypatch.chdir(tmp_path)
    state = state_dict("hub")
    torch.save({"model": state, "optimizer": {}}, "smat.pt")
    torch.save({key: state[key] for key in ROUTER_TENSORS}, "router.pt")
    torch.save({key: tensor for key, tensor in state.items() if key not in ROUTER_TENSORS}, "cuda.pt")
    backbone("hub").save_pretrained("vit")
    ViTImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained("vit")
    for domain in ("birds", "signs"):
        for number in range(5):
            (tmp_path / "data" / domain / str(number)).mkdir(parents=True)
            for image in range(3):
                colours = Image.new("RGB", (40, 40), (50 * number, 60 * image, 90))
                colours.save(tmp_path / "data" / domain / str(number) / f"{image}.png")
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that runs an example and returns its exit status, what it printed, and its errors."""

    def call(name: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


CONVERT = ("--backbone", "vit", "--output_dir", "adapter")


@pytest.mark.parametrize("arguments", [["smat.pt"], ["cuda.pt", "--router_file", "router.pt"]])
def test_a_converted_checkpoint_is_an_adapter_with_the_authors_logits(
    arguments: list[str], place: Path, run: Any
) -> None:
    status, printed, _ = run("convert_reference.py", *arguments, *CONVERT)
    assert status == 0
    assert "113 keys used" in printed or "111 keys used" in printed
    assert json.loads((place / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "vit"
    ours, _ = classify_episode(load_model("vit", "adapter"), *episode(0))
    assert distance(ours, numbers("authors/evaluation")["ep0/query_logits"]) < 1e-5


def test_a_checkpoint_without_router_tokens_is_one_error_that_says_what_to_do(place: Path, run: Any) -> None:
    status, _, error = run("convert_reference.py", "cuda.pt", *CONVERT)
    assert status == 2
    assert "never saves them on a CUDA device" in error
    assert not (place / "adapter").exists()
    assert run("convert_reference.py", "cuda.pt", "--mix_evenly", *CONVERT)[0] == 0


VERIFY = ("--domains", "folder:data/*", "--episodes", "2", "--image_size", "32")


def test_a_checkpoint_is_measured_on_the_domains_named(place: Path, run: Any) -> None:
    status, printed, _ = run("verify_reference.py", "--checkpoint", "smat.pt", "--backbone", "vit", *VERIFY)
    assert status == 0
    for start in ("smat.pt on vit", "birds", "signs", "average"):
        assert any(line.startswith(start) for line in printed.splitlines()), start
    assert "SMAT" in printed


def test_the_authors_repositories_are_measured_one_after_the_other(
    place: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/smat-vit-dino-small", "a/smat-vit-dino-base"):
        Path(name).mkdir(parents=True)
    Path("facebook").mkdir()
    Path("cuda.pt").rename("a/smat-vit-dino-small/cuda.pt")
    Path("smat.pt").rename("a/smat-vit-dino-base/smat.pt")
    for name in ("dino-vits16", "dino-vitb16"):
        Path("facebook", name).symlink_to(place / "vit")
    names = ("a/smat-vit-dino-small", "a/smat-vit-dino-base", "a/smat-vit-other")
    monkeypatch.setattr(HfApi, "list_models", lambda *_, **__: [SimpleNamespace(id=name) for name in names])
    status, printed, error = run("verify_reference.py", *VERIFY)
    assert status == 2  # one of them cannot be routed, and the other is measured all the same
    assert "never saves them on a CUDA device" in error
    assert "a/smat-vit-dino-base on facebook/dino-vitb16" in printed
    assert "a/smat-vit-other: its backbone is not known here" in printed


def test_a_checkpoint_without_its_backbone_is_refused(run: Any) -> None:
    status, _, error = run("verify_reference.py", "--checkpoint", "smat.pt")
    assert status == 2
    assert "belong together" in error
