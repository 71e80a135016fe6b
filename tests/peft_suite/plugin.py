"""A pytest plugin that points PEFT's tests at SMATConfig and drops those that are about other methods."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import types
from collections import Counter
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.integrations.peft

if importlib.util.find_spec("diffusers") is None:  # imported by test modules, for tests that are dropped
    diffusers = types.ModuleType("diffusers")
    diffusers.__spec__ = ModuleSpec("diffusers", None)
    diffusers.__version__ = "0"  # type: ignore[attr-defined]
    diffusers.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})  # type: ignore[attr-defined]
    sys.modules["diffusers"] = diffusers

import cases
import stand_ins
from exceptions import EXCEPTIONS

from smat_peft import SMATConfig

HERE = Path(__file__).parent
# Tests of these modules name LoRA where any method would do; which of them do is listed in applicable.json.
ABOUT_TUNERS = json.loads((HERE / "applicable.json").read_text())
# These change the table of default targets of LoRA and DeLoRA themselves, and one is about prompt learning.
ABOUT_OTHERS = {
    "test_default_target_modules_list_of_str",
    "test_default_target_modules_str",
    "test_prompt_learning_with_gradient_checkpointing",
}
# A release of transformers may ask for a PEFT that is still to come; this is about the one that is installed.
transformers.integrations.peft.MIN_PEFT_VERSION = importlib.metadata.version("peft")

torch.set_num_threads(1)
ours: set[tuple[str, str, str]] = set()
results: Counter[str] = Counter()
excepted: Counter[str] = Counter()


def with_random_delta(original: Any) -> Any:
    """PEFT's own helper, which knows by class how to make an adapter that changes something."""

    def set_init_weights_false(config_cls: type, kwargs: dict[str, Any]) -> dict[str, Any]:
        return kwargs | {"init_weights": False} if config_cls is SMATConfig else original(config_cls, kwargs)

    return set_init_weights_false


def random_pixels(_self: Any) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(1, 3, 64, 64)}


def pytest_configure(config: pytest.Config) -> None:
    for marker in ("regression", "bitsandbytes", "single_gpu_tests", "multi_gpu_tests"):
        config.addinivalue_line("markers", f"{marker}: PEFT's")
    stand_ins.use_stand_ins()
    helpers = importlib.import_module("peft_tests.testing_utils")
    helpers.hub_online_once = lambda *_args, **_kwargs: nullcontext()
    helpers.load_cat_image = lambda: None
    helpers.set_init_weights_false = with_random_delta(helpers.set_init_weights_false)
    for name in os.environ["SMAT_PEFT_SUITE_MODULES"].split(","):
        prepare(name, helpers)


def prepare(name: str, helpers: types.ModuleType) -> None:
    """Give the tests of a module our cases, and note which tests have any."""
    module = importlib.import_module(f"peft_tests.{name}")
    if hasattr(module, "set_init_weights_false"):
        module.set_init_weights_false = helpers.set_init_weights_false
    if name == "test_vision_models":  # its images are made by a processor of the Hub
        module.TestResnet.data = pytest.fixture(scope="class")(random_pixels)
    if name in ABOUT_TUNERS:
        module.LoraConfig = cases.in_place_of_lora
    for class_name, cls in vars(module).items():
        if not (isinstance(cls, type) and class_name.startswith("Test") and cls.__module__ == module.__name__):
            continue
        for test, function in vars(cls).items():
            if not test.startswith("test"):
                continue
            if name in ABOUT_TUNERS:
                applies = f"{class_name}::{test}" in ABOUT_TUNERS[name]
            else:
                applies = parametrise(name, test, function)
            if applies and test not in ABOUT_OTHERS:
                ours.add((name, class_name, test))


def parametrise(module: str, test: str, function: Any) -> bool:
    """Replace the parameter sets of a test by ours; whether it then is about SMAT."""
    marks, replaced = [], False
    for mark in getattr(function, "pytestmark", []):
        names = mark.args[0] if mark.name == "parametrize" else ()
        names = tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else tuple(names)
        sets = cases.parameter_sets(module, test, names)
        if sets is not None:
            ids = [parameters[0] for parameters in sets] if names[0] == "test_name" else None
            mark = pytest.mark.parametrize(",".join(names), sets, ids=ids).mark
            replaced = replaced or names != ("model_id",)
        marks.append(mark)
    if replaced:
        function.pytestmark = marks
    return replaced


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, dropped = [], []
    for item in items:
        module, cls = item.module.__name__.rpartition(".")[2], item.cls.__name__ if item.cls else ""  # type: ignore
        key = (module, cls, getattr(item, "originalname", item.name))
        if not item.path.is_relative_to(HERE) and key not in ours:
            dropped.append(item)
            continue
        kept.append(item)
        reason = EXCEPTIONS.get(f"{cls}::{item.name}", EXCEPTIONS.get(f"{cls}::{key[2]}"))
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if hasattr(report, "wasxfail") and report.skipped:
        results["excepted"] += 1
        excepted[f"{report.nodeid.partition('::')[2].partition('[')[0]}\n      {report.wasxfail}"] += 1
    elif report.failed or report.skipped or report.when == "call":
        results[report.outcome] += 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.section("PEFT's tests with SMATConfig")
    names = ("passed", "skipped", "excepted", "failed")
    terminalreporter.write_line(", ".join(f"{results[name]} {name}" for name in names))
    terminalreporter.write_line("excepted:" if excepted else "")
    for line, count in excepted.items():
        terminalreporter.write_line(f"  {count:2d}  {line}")
