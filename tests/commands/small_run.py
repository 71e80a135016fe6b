"""The words of a small run of `meta_tune`, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ADAPTER = "adapter_model.safetensors"
IMAGES = 4  # of a class in the world of the tests
TINY = {
    "max_steps": 4,
    "episodes_per_step": 2,
    "num_experts": 2,
    "target_sparsity": 0.5,
    "delta_lr": 0.1,
    "gate_lr": 100.0,
    "warmup_steps": 1,
    "max_ways": 5,
    "max_support": 10,
    "queries": 2,
    "logging_steps": 1,
    "validation_steps": 2,
    "validation_episodes": 1,
    "checkpointing_steps": 2,
    "evaluation_episodes": 3,
    "evaluation_ways": 5,
    "evaluation_shots": 1,
    "threads": 1,
}


def words(world: Path, output: Path, **changes: Any) -> list[str]:
    """The run on the world's training domains; a setting of None is left out."""
    settings = {"model_name_or_path": world / "vit", "train_domains": f"folder:{world}/train/*", "output_dir": output}
    settings |= TINY | {"ood_domains": f"folder:{world}/other"} | changes
    return [f"--{name}={value}" for name, value in settings.items() if value is not None]


def metrics(output: Path) -> dict[str, Any]:
    """The figures of a run, without times and without what tells a resumed run from another."""
    figures: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    figures.pop("training_seconds")
    for name in ("output_dir", "resume_from_checkpoint"):
        figures["settings"].pop(name)
    return figures
