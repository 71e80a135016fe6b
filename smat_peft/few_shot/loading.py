"""A backbone from the Hub or a folder, with an adapter or without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import AutoModel
from transformers.utils import logging

from smat_peft.assets import backbone_source
from smat_peft.errors import CheckpointError
from smat_peft.tuner.targets import heads_of
from smat_peft.tuner.tasks import has_experts


def load_backbone(name_or_path: str | Path) -> nn.Module:
    """A pre-trained vision backbone without its head, in evaluation mode.

    Raises:
        CheckpointError: It cannot be loaded, or some of its weights are not in the checkpoint (those of a head or of
            an unused pooler excepted), so that they would be random.
    """
    with one_line_errors(f"backbone {str(name_or_path)!r}"), _quiet_loading():
        model, report = AutoModel.from_pretrained(backbone_source(name_or_path), output_loading_info=True)
    unused = tuple(f"{path}." for path in heads_of(model, "auto"))
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(unused))
    if missing:
        raise CheckpointError(
            f"backbone {str(name_or_path)!r} has no weights for {len(missing)} parameters of {type(model).__name__}, "
            f"{missing[0]} the first of them; give the checkpoint of a pre-trained vision model"
        )
    model.name_or_path = str(name_or_path)  # what an adapter's configuration will say
    return model.eval()


def load_model(backbone: str | Path, adapter: str | Path | None = None) -> nn.Module:
    """A pre-trained backbone with a PEFT adapter on it, if one is named, in evaluation mode.

    An adapter of another method than SMAT is merged into the backbone, so that it can be fine-tuned like any other.

    Raises:
        CheckpointError: One of them cannot be loaded, or they do not fit each other.
    """
    model = load_backbone(backbone)
    if adapter is None:
        return model
    adapted = load_adapter(model, adapter)
    if has_experts(adapted):
        return adapted
    with one_line_errors(f"adapter {str(adapter)!r}"):
        merged: Any = adapted.merge_and_unload()
    merged.name_or_path = ""  # what has that name is the backbone without the adapter
    return merged


def load_adapter(backbone: nn.Module, adapter: str | Path, *, is_trainable: bool = False) -> PeftModel:
    """A backbone with a PEFT adapter put into it, in evaluation mode, to be trained further or not.

    Raises:
        CheckpointError: The adapter cannot be loaded, or does not fit.
    """
    with one_line_errors(f"adapter {str(adapter)!r} on backbone {backbone.name_or_path!r}"), _quiet_loading():
        model: PeftModel = PeftModel.from_pretrained(backbone, str(adapter), is_trainable=is_trainable).eval()
    return model


@contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """Loaders' own errors, which may run over many lines, as a [`CheckpointError`] of one that says what was loaded."""
    try:
        yield
    except Exception as error:  # what a loader raises depends on which part of a checkpoint is broken, and how
        reason = " ".join(str(error).split())
        if not isinstance(error, OSError | ValueError | RuntimeError):
            reason = f"{type(error).__name__}: {reason}"
        raise CheckpointError(f"cannot load {what}: {reason}") from error


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """No bar and no report of weights that a head would need: what is missing is checked here."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
