"""What PEFT would let pass in the files of an adapter: a setting unknown, a tensor too few, a number that is none."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import safe_open
from torch import Tensor
from transformers.utils import cached_file, find_adapter_config_file

from smat_peft.errors import CheckpointError
from smat_peft.tuner.adapters import active_adapter, has_experts
from smat_peft.tuner.config import SMATConfig

LISTED = 3  # names in a message


def check_configuration(adapter: str, *, revision: str | None, token: str | None) -> None:
    """Refuse a configuration of a method that PEFT does not know.

    Raises:
        CheckpointError: Says what is wrong in which file.
    """
    file = find_adapter_config_file(adapter, revision=revision, token=token)
    if file is None:
        raise CheckpointError(f"there is no {CONFIG_NAME}")
    try:
        settings = json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{CONFIG_NAME} cannot be read as JSON: {error}") from error
    method = settings.get("peft_type") if isinstance(settings, dict) else None
    if method not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise CheckpointError(f"{CONFIG_NAME}: peft_type is {method!r}, which PEFT does not know; it may be newer")
    folder = Path(adapter)
    if folder.is_dir() and not any((folder / name).is_file() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
        raise CheckpointError(f"the folder has no {SAFETENSORS_WEIGHTS_NAME}")


@contextmanager
def no_setting_ignored() -> Iterator[None]:
    """Within the block, a setting that [`SMATConfig`] does not know is an error, where PEFT warns and goes on."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "error", f"Unexpected keyword arguments .* for class {SMATConfig.__name__}", UserWarning
        )
        yield


def check_tensors(model: PeftModel, adapter: str, *, revision: str | None, token: str | None) -> None:
    """Refuse a SMAT adapter whose file lacks tensors, has others, or holds numbers that are none.

    Args:
        model: The model that it was loaded into.
        adapter: A folder, or a repository of the Hub.
        revision: Branch, tag or commit of it.
        token: What opens private repositories.

    Raises:
        CheckpointError: Names the first such tensors.
    """
    if not has_experts(model):
        return
    loaded = get_peft_model_state_dict(model, adapter_name=active_adapter(model), save_embedding_layers=False)
    file = cached_file(
        adapter,
        SAFETENSORS_WEIGHTS_NAME,
        revision=revision,
        token=token,
        _raise_exceptions_for_missing_entries=False,
    )
    if file is not None:
        with safe_open(file, "pt") as tensors:
            names = set(tensors.keys())
            _refuse("lacks", loaded.keys() - names)
            _refuse("is of another model or adapter: this one has no", names - loaded.keys())
            numbers = {name: tensors.get_slice(name).get_dtype() for name in names if loaded[name].is_floating_point()}
            others = {name for name, kind in numbers.items() if "F" not in kind}
            _refuse("holds whole numbers in", others)
    _refuse("holds infinite numbers or NaN in", {name for name, tensor in loaded.items() if not _is_finite(tensor)})


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _refuse(what: str, names: set[str]) -> None:
    if names:
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        raise CheckpointError(f"{SAFETENSORS_WEIGHTS_NAME} {what} {', '.join(sorted(names)[:LISTED])}{more}")
