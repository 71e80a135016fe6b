"""A fitted classifier on disk: what a backbone needs to give the same probabilities again, and not the backbone itself.

    classifier.json         classes, settings, image transform, the backbone's name and commit, the other file's digest
    classifier.safetensors  prototypes [C, D], expert weights [M], the task's weights, and features of a probe image

The task's weights are whole parameters of the backbone, merged and fine-tuned: an adapter is not needed any more. The
probe is an image that is drawn by a fixed seed: a backbone that gives other features of it is another one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from smat_peft.episodes.images import ImageTransform
from smat_peft.errors import CheckpointError
from smat_peft.few_shot.adaptation import AdaptedTask, task_features
from smat_peft.few_shot.backbone import device_of, on_device, root_of
from smat_peft.few_shot.loading import load_backbone
from smat_peft.files import replacing, write_text
from smat_peft.tuner.layer import SMATLayer
from smat_peft.tuner.routing import SMATRouter

DESCRIPTION, TENSORS = "classifier.json", "classifier.safetensors"
FORMAT_VERSION = 1
PROBE_TOLERANCE = 0.03  # of the feature's norm: half precision differs by less from one machine to another
WEIGHTS = "weights/"  # before the names of the task's weights
LABEL_KINDS = "Uiufb"  # of numpy: strings and numbers


@dataclass(frozen=True)
class SavedClassifier:
    """What is saved of a classifier: the attributes that fitting gave it, and its settings by name."""

    classes: NDArray[Any]
    task: AdaptedTask
    learning_rate: float
    transform: ImageTransform | None
    image_size: tuple[int, int]
    settings: dict[str, Any]


def write_classifier(folder: Path, saved: SavedClassifier, model: nn.Module) -> None:
    """Write a classifier into a folder, over another one if need be. The description, written last, makes it whole.

    Each of both files is written whole or not at all.

    Raises:
        CheckpointError: The folder cannot be written to.
    """
    task = saved.task
    tensors = {"prototypes": task.prototypes, "probe": _probe(model, task, saved.image_size)}
    tensors |= {f"{WEIGHTS}{name}": tensor for name, tensor in task.weights.items()}
    if task.expert_weights is not None:
        tensors["expert_weights"] = task.expert_weights
    packed = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
    description = {
        "format_version": FORMAT_VERSION,
        "backbone": _name_of(model),
        "revision": getattr(getattr(root_of(model), "config", None), "_commit_hash", None),
        "feature": task.feature,
        "classes": saved.classes.tolist(),
        "labels": saved.classes.dtype.str,
        "learning_rate": saved.learning_rate,
        "image_size": saved.image_size,
        "transform": None if saved.transform is None else asdict(saved.transform),
        "settings": saved.settings,
        "sha256": hashlib.sha256(packed).hexdigest(),
    }
    text = json.dumps(description, indent=1, default=np.generic.item)  # of settings that are numpy's numbers
    with replacing(folder / TENSORS) as path:
        path.write_bytes(packed)
    write_text(folder / DESCRIPTION, text)


def read_classifier(
    folder: Path, model: nn.Module | None, device: str | torch.device | None
) -> tuple[SavedClassifier, nn.Module]:
    """A classifier and its backbone on a device; the backbone is loaded by name and commit where none is given.

    Raises:
        CheckpointError: A file is missing, damaged or of another format, or the backbone is another one.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        packed = (folder / TENSORS).read_bytes()
        if description["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version is {description['format_version']!r}, and {FORMAT_VERSION} can be read")
        if hashlib.sha256(packed).hexdigest() != description["sha256"]:
            raise ValueError(f"{TENSORS} is not the file that {DESCRIPTION} was written for")
        saved, probe = _unpacked(description, load(packed))
        name, revision = description["backbone"], description.get("revision")
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise CheckpointError(f"{folder} holds no whole classifier: {reason}") from error
    if model is None and name is None:
        raise CheckpointError(f"{folder} does not say where its backbone comes from; give it as model")
    model = on_device(load_backbone(name, revision=revision) if model is None else model, device)
    saved = replace(saved, task=_on_device_of(model, saved.task))
    _check_backbone(folder, model, saved, probe)
    return saved, model


def _unpacked(description: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[SavedClassifier, Tensor]:
    task = AdaptedTask(
        prototypes=tensors["prototypes"],
        weights={name.removeprefix(WEIGHTS): tensor for name, tensor in tensors.items() if name.startswith(WEIGHTS)},
        expert_weights=tensors.get("expert_weights"),
        feature=str(description["feature"]),
    )
    dtype = np.dtype(description["labels"])
    classes = np.array(description["classes"], dtype)
    if dtype.kind not in LABEL_KINDS or classes.shape != task.prototypes.shape[:1]:
        raise ValueError(f"{classes.shape} labels of type {dtype} for {len(task.prototypes)} prototypes")
    height, width = description["image_size"]
    transform = description["transform"]
    saved = SavedClassifier(
        classes=classes,
        task=task,
        learning_rate=float(description["learning_rate"]),
        transform=None if transform is None else _transform(transform),
        image_size=(int(height), int(width)),
        settings=dict(description["settings"]),
    )
    return saved, tensors["probe"]


def _transform(fields: dict[str, Any]) -> ImageTransform:
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    plain["resample"] = Image.Resampling(plain["resample"])
    return ImageTransform(**plain)


def _name_of(model: nn.Module) -> str | None:
    """Where the backbone can be loaded from; None where what is loaded would lack what an adapter did to it."""
    root = root_of(model)
    ours = (SMATLayer, SMATRouter)
    adapters = (module for module in root.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper))
    if any(not isinstance(module, ours) for module in adapters):
        return None
    return getattr(root, "name_or_path", None) or None


def _probe(model: nn.Module, task: AdaptedTask, image_size: tuple[int, int]) -> Tensor:
    image = torch.randn(1, 3, *image_size, generator=torch.Generator().manual_seed(0))
    return task_features(model, task, image, batch_size=1)[0]


def _on_device_of(model: nn.Module, task: AdaptedTask) -> AdaptedTask:
    device = device_of(model)
    return replace(
        task,
        prototypes=task.prototypes.to(device),
        weights={name: tensor.to(device) for name, tensor in task.weights.items()},
        expert_weights=None if task.expert_weights is None else task.expert_weights.to(device),
    )


def _check_backbone(folder: Path, model: nn.Module, saved: SavedClassifier, expected: Tensor) -> None:
    try:
        found = _probe(model, saved.task, saved.image_size).cpu()
        same = found.shape == expected.shape and (found - expected).norm() <= PROBE_TOLERANCE * expected.norm()
    except (RuntimeError, ValueError):  # of shapes that do not fit, or names that are not there
        same = False
    if not same:
        raise CheckpointError(
            f"this {type(root_of(model)).__name__} is not the backbone of the classifier in {folder}: it has other "
            "features; give the one that it was fitted with as model"
        )
