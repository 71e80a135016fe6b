"""`python -m smat_peft env`: what a report of a problem should say about a machine and what is installed on it."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from smat_peft import requirements
from smat_peft.version import __version__

VARIABLES = ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HOME", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


def main(argv: Sequence[str] | None = None) -> int:
    """Print it; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m smat_peft",
        description="What a report of a problem should say of this machine. The other commands are modules of their "
        "own: python -m smat_peft.classify, .evaluate, .analyse, .meta_tune; each has --help.",
    )
    parser.add_argument("command", choices=["env"])
    parser.parse_args(argv)
    for name, value in environment().items():
        print(f"- {name}: {value}")
    return 0


def environment() -> dict[str, str]:
    """Versions, devices and the variables of the environment that matter, by name."""
    required = {requirement.name for requirement in requirements.stated()}
    optional = {requirement.name for requirement in requirements.stated(extras=True)} - {requirements.PACKAGE}
    missing = sorted(name for name in optional if requirements.installed(name) is None)
    return {
        "smat_peft": f"{__version__} in {Path(__file__).parents[1]}",
        "Python": f"{platform.python_version()} in {sys.prefix}",
        "platform": platform.platform(),
        "cores": str(os.cpu_count()),
        "threads of torch": str(torch.get_num_threads()),
        "devices": ", ".join(_devices()),
        **{name: requirements.installed(name) or "not installed" for name in sorted(required)},
        "not installed": ", ".join(missing) or "nothing",
        "variables": ", ".join(f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ) or "none",
    }


def _devices() -> list[str]:
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return [*devices, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
