"""What makes a run the run it is, as plain data for its checkpoints: it is resumed with the same, or told otherwise."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from platform import python_version
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from smat_peft.episodes.identity import describe_episodes, digest, plain
from smat_peft.meta_tuning.arguments import MetaTuningArguments

ENVIRONMENT = "environment"  # what may change, at the price of rounding; so may these arguments:
ROUNDING_ARGUMENTS = frozenset(("max_batch_size", "episodes_per_merge", "torch_compile"))
LIBRARIES = ("smat_peft", "torch", "peft", "transformers", "accelerate", "safetensors", "numpy")
# Arguments that a resumed run may change without becoming another run.
FREE_ARGUMENTS = frozenset(
    (
        *("output_dir", "resume_from_checkpoint", "resume_anyway", "checkpointing_steps", "save_total_limit"),
        *("dataloader_num_workers", "dataloader_cache_mib", "max_skipped_steps"),
    )
)
# Of configurations: where a model lay and what wrote it does not change what it computes.
FREE_SETTINGS = frozenset(
    (
        *("_name_or_path", "transformers_version", "base_model_name_or_path", "revision", "peft_version"),
        *("inference_mode", "auto_mapping"),
    )
)
SHOWN = 60  # characters of a value in a message


def describe_run(
    model: nn.Module,
    frozen: Mapping[str, Tensor],
    arguments: MetaTuningArguments,
    train: object,
    validation: object,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """All that a run's result depends on, for the manifest of its checkpoints.

    Args:
        model: What is trained.
        frozen: Its tensors that the run does not change; they are read once, as a whole.
        arguments: Arguments of meta-tuning.
        train: Training episodes.
        validation: Validation episodes.
        accelerator: Says how the run is done.
    """
    adapters: Mapping[str, Any] = getattr(model, "peft_config", {})
    config: Any = getattr(model, "config", None)
    described = {
        "arguments": dataclasses.asdict(arguments),
        "adapter": {name: _settings(adapter.to_dict()) for name, adapter in adapters.items()},
        "backbone": {
            "configuration": digest(_settings(config.to_dict() if hasattr(config, "to_dict") else {})),
            "weights": fingerprint(frozen),
        },
        "training data": describe_episodes(train),
        "validation data": describe_episodes(validation),
        "precision": {"mixed_precision": accelerator.mixed_precision},
        ENVIRONMENT: {
            **{name: version(name) for name in LIBRARIES},
            "python": python_version(),
            "device": accelerator.device.type,
            "processes": accelerator.num_processes,
            "threads": torch.get_num_threads(),
        },
    }
    as_written: dict[str, Any] = json.loads(json.dumps(described, default=plain))
    return as_written


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What of two descriptions is not the same, a phrase each: first what makes them other runs, then the rest."""
    found: tuple[list[str], list[str]] = ([], [])
    for section in now:
        was, is_ = (dict(_flat(described.get(section, {}))) for described in (before, now))
        for name in [*was, *(name for name in is_ if name not in was)]:
            if was.get(name) != is_.get(name) and not (section == "arguments" and name in FREE_ARGUMENTS):
                phrase = f"{section}: {name} was {_shown(was.get(name))}, is {_shown(is_.get(name))}"
                rounds = section == ENVIRONMENT or (section == "arguments" and name in ROUNDING_ARGUMENTS)
                found[rounds].append(phrase)
    return found


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, types and shapes, wherever they are."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in FREE_SETTINGS}


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        inner = dict(enumerate(value)) if isinstance(value, list) and any(isinstance(v, dict) for v in value) else value
        if isinstance(inner, dict):
            yield from _flat(inner, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
