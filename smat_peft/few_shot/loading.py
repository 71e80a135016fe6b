"""A backbone from the Hub or a folder, with an adapter or without; an adapter alone names its backbone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.utils import CONFIG_NAME
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.utils import CONFIG_NAME as MODEL_CONFIG
from transformers.utils import cached_file, extract_commit_hash, find_adapter_config_file, logging

from smat_peft.assets import backbone_source
from smat_peft.errors import CheckpointError
from smat_peft.few_shot.adapter_files import check_configuration, check_tensors, no_setting_ignored
from smat_peft.tuner.adapters import has_experts
from smat_peft.tuner.targets import heads_of


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        backbone: Its backbone, on the Hub or a folder.
        adapter: A PEFT adapter for that backbone, likewise.
        backbone_revision: Branch, tag or commit of the backbone.
        adapter_revision: The same of the adapter.
        token: What opens private repositories; the one of `hf auth login` by default.
    """

    backbone: str
    adapter: str | None = None
    backbone_revision: str | None = None
    adapter_revision: str | None = None
    token: str | None = field(default=None, repr=False)

    def load_backbone(self) -> nn.Module:
        """The backbone alone: see [`load_backbone`]."""
        return load_backbone(self.backbone, revision=self.backbone_revision, token=self.token)

    def load(self) -> nn.Module:
        """The backbone with the adapter, if there is one: see [`load_model`]."""
        model = self.load_backbone()
        if self.adapter is None:
            return model
        adapted = load_adapter(model, self.adapter, revision=self.adapter_revision, token=self.token)
        if has_experts(adapted):
            return adapted
        with one_line_errors(f"adapter {self.adapter!r}"):
            merged: Any = adapted.merge_and_unload()
        merged.name_or_path = ""  # what has that name is the backbone without the adapter
        return merged


def find_model(
    name_or_path: str | Path,
    adapter: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> ModelSource:
    """Find what a model is made of.

    Args:
        name_or_path: A backbone, or an adapter, a repository or folder with `adapter_config.json`: that names its
            backbone and, if need be, the backbone's revision.
        adapter: An adapter for that backbone.
        revision: Branch, tag or commit of the adapter, or of the backbone where there is no adapter.
        token: What opens private repositories; the one of `hf auth login` by default.

    Raises:
        CheckpointError: The adapter's configuration cannot be read or names no backbone.
    """
    name = str(name_or_path)
    if adapter is not None:
        return ModelSource(name, str(adapter), adapter_revision=revision, token=token)
    with one_line_errors(f"model {name!r}"):
        file = find_adapter_config_file(backbone_source(name), revision=revision, token=token)
        if file is None:
            return ModelSource(name, backbone_revision=revision, token=token)
        config = PeftConfig.from_json_file(file)
    backbone = config.get("base_model_name_or_path")
    if not backbone:
        raise CheckpointError(f"adapter {name!r} does not name its backbone; give the backbone, and it as the adapter")
    return ModelSource(backbone, name, config.get("revision"), revision, token)


def backbone_name(adapter: str | Path) -> str:
    """Name of the backbone that an adapter, a repository or a folder, was made for.

    Raises:
        CheckpointError: There is no adapter, its configuration cannot be read, or it names no backbone.
    """
    source = find_model(adapter)
    if source.adapter is None:
        raise CheckpointError(
            f"{str(adapter)!r} is no adapter: there is no {CONFIG_NAME} in a folder of that name, nor found on the Hub"
        )
    return source.backbone


def load_backbone(name_or_path: str | Path, *, revision: str | None = None, token: str | None = None) -> nn.Module:
    """A pre-trained vision backbone without its head, in evaluation mode.

    Args:
        name_or_path: Its name on the Hub, or its folder.
        revision: Branch, tag or commit on the Hub.
        token: What opens private repositories; the one of `hf auth login` by default.

    Raises:
        CheckpointError: It cannot be loaded, or some of its weights are not in the checkpoint (those of a head or of
            an unused pooler excepted), so that they would be random.
    """
    with one_line_errors(f"backbone {str(name_or_path)!r}"), _quiet_loading():
        source = backbone_source(name_or_path)
        commit = extract_commit_hash(cached_file(source, MODEL_CONFIG, revision=revision, token=token), None)
        asked: dict[str, Any] = {"revision": commit or revision, "token": token}
        config = AutoConfig.from_pretrained(source, **asked)
        config = getattr(config, "vision_config", config)  # of a model of images and text
        model, report = AutoModel.from_pretrained(source, config=config, output_loading_info=True, **asked)
    if model.main_input_name != "pixel_values":
        raise CheckpointError(
            f"backbone {str(name_or_path)!r} is a {type(model).__name__}, which takes {model.main_input_name} and not "
            "images; give a vision model"
        )
    if getattr(model.config, "mask_ratio", 0) > 0:
        model.config.mask_ratio = 0.0  # masked autoencoders hide most of an image for pre-training alone
    unused = tuple(f"{path}." for path in heads_of(model, "auto"))
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(unused))
    if missing:
        raise CheckpointError(
            f"backbone {str(name_or_path)!r} has no weights for {len(missing)} parameters of {type(model).__name__}, "
            f"{missing[0]} the first of them; give the checkpoint of a pre-trained vision model"
        )
    model.name_or_path = str(name_or_path)  # what an adapter's configuration will say
    model.config._commit_hash = commit  # where older versions of transformers keep it, too
    return model.eval()


def load_model(
    name_or_path: str | Path,
    adapter: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> nn.Module:
    """A pre-trained backbone with a PEFT adapter on it, if there is one, in evaluation mode.

    An adapter of another method than SMAT is merged into the backbone, so that it can be fine-tuned like any other.

    Args:
        name_or_path: A backbone, or an adapter that names its own, as for [`find_model`]; so are the others.
        adapter: An adapter for that backbone.
        revision: Branch, tag or commit of the adapter, or of the backbone where there is no adapter.
        token: What opens private repositories.

    Raises:
        CheckpointError: One of them cannot be loaded, or they do not fit each other.
    """
    return find_model(name_or_path, adapter, revision=revision, token=token).load()


def load_adapter(
    backbone: nn.Module,
    adapter: str | Path,
    *,
    is_trainable: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> PeftModel:
    """A backbone with a PEFT adapter put into it, in evaluation mode, to be trained further or not.

    Raises:
        CheckpointError: The adapter cannot be loaded, or does not fit.
    """
    place = {"revision": revision, "token": token}
    with one_line_errors(f"adapter {str(adapter)!r} on backbone {backbone.name_or_path!r}"), _quiet_loading():
        check_configuration(str(adapter), **place)
        with no_setting_ignored():
            model: PeftModel = PeftModel.from_pretrained(backbone, str(adapter), is_trainable=is_trainable, **place)
        check_tensors(model, str(adapter), **place)
    return model.eval()


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
