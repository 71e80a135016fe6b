"""What every test shares: no network, one thread, shapes checked, a small backbone, a Hub on this machine."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

from jaxtyping import install_import_hook

# Before the first import of smat_peft, or there is nothing left to hook.
# Not in experts/compiled.py: torch's compiler cannot read the checks.
mathematics = (
    *("bits", "counting", "gates", "interpolate", "kernels"),
    *("packed", "patterns", "prototypes", "router", "stored"),
)
checked = [*(f"smat_peft.experts.{name}" for name in mathematics), "smat_peft.few_shot"]
install_import_hook(checked, "beartype.beartype")

import runpy
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import close_session
from peft import get_peft_model
from PIL import Image
from transformers import ViTModel

from smat_peft import SMATConfig
from smat_peft.experts import compiled
from smat_peft.few_shot import load_backbone
from tests import small_models
from tests.class_folders import write_classes
from tests.sharing.hub_server import Hub, serve

HUB_NAME = "facebook/dino-vits16"
EXAMPLES = Path(__file__).parents[1] / "examples"

torch.set_num_threads(1)  # sums are then rounded in the same order on every machine

hypothesis.settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="module", params=["eager", "compiled"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test twice: as is, and with generated code for merges of 4 experts, one task or four."""
    if request.param == "compiled":
        least, compiled.MIN_SIZE = compiled.MIN_SIZE, 32
        for num_tasks in (1, 4):
            assert compiled.compile_passes("merge", "gradients", *compiled.COUNTS, num_experts=4, num_tasks=num_tasks)
        yield request.param
        compiled.MIN_SIZE = least
        compiled.forget_compiled_passes()
    else:
        yield request.param


@pytest.fixture(scope="session")
def make_vit() -> Callable[..., ViTModel]:
    """A function that builds a fresh ViT, `[N, 3, 16, 16]` -> `[N, 5, 16]`; the same weights for the same seed."""
    return small_models.make_vit


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """A function that runs a script of examples/ and returns its exit status, what it printed, and its errors."""

    def run(name: str, *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        status = 0
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def threads_for_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and looks of the comparison in threads, which see what a test puts in place of the meta-tuner."""
    from comparison import jobs  # of the examples, which few tests are about

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # it is set for the runs, and is as it was when the test ends
    monkeypatch.setattr(jobs, "ProcessPoolExecutor", lambda workers, *_, **__: ThreadPoolExecutor(workers))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine, and the client turned to it, with a cache of its own and waits that take no time.

    Large files go the way that they go without Xet, whose protocol this Hub does not speak.
    """
    with serve() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setattr("time.sleep", hub.waits.append)
        yield hub
        close_session()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with all that the code and commands of README and docs name."""
    monkeypatch.chdir(tmp_path)

    def draw(number: int, image: int) -> Image.Image:
        return Image.new("RGB", (16, 16), (25 * number, 20 * image, 90))

    for place, classes in (("support", 2), ("data/birds", 9), ("data/signs", 9), ("other", 5)):
        write_classes(tmp_path / place, [f"class{number}" for number in range(classes)], 2, draw, "jpg")
    draw(1, 0).save(tmp_path / "unknown.jpg")
    (tmp_path / "unknown").mkdir()
    draw(1, 0).save(tmp_path / "unknown" / "photo.jpg")
    small_models.save_vit(tmp_path / HUB_NAME)  # a folder of that name goes before the Hub
    torch.manual_seed(0)
    adapter = get_peft_model(load_backbone(HUB_NAME), SMATConfig(num_experts=2, init_weights=False))
    adapter.save_pretrained(tmp_path / "outputs" / "mine")
    small_models.save_demo_adapter(tmp_path / "outputs" / "demo")
    return tmp_path
