"""Small files: an adapter in its inference form, and the weights of one task as an adapter.

Both are ordinary adapter folders: safetensors, whose metadata hold a header, and a configuration with the same header.
`smat_peft.experts.stored` describes the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor

from smat_peft.errors import CheckpointError, ConfigurationError
from smat_peft.experts.packed import rounded
from smat_peft.experts.stored import FORMAT_VERSION
from smat_peft.files import moving_into
from smat_peft.sharing.packed_error import logit_error, random_images
from smat_peft.tuner.adapters import active_adapter, adapted_parameters, adapter_config, smat_layers, unmerged_state
from smat_peft.tuner.config import SMATConfig
from smat_peft.tuner.layer import SMATLayer
from smat_peft.tuner.merging import evaluated_gates
from smat_peft.tuner.packed import CONTAINER, PackedParameter, refuse_training
from smat_peft.version import __version__

OF_ONE_TASK = "of one task"  # in place of how gates are stored
HEADER = "smat_packed"  # its key in the metadata of the safetensors file
LEFT_OUT = "gate logits, a delta that no expert uses, the multipliers of the sparsity constraint, optimiser state"

Packed = dict[tuple[SMATLayer, str], PackedParameter]


def pack_adapter(
    model: PeftModel,
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float16,
    tolerance: float = 1e-2,
    lossless: bool = False,
    images: Tensor | None = None,
) -> dict[str, Any]:
    """Write the active adapter in its inference form, at 90 % sparsity a twelfth of its size.

    `PeftModel.from_pretrained`, `load_adapter` and `FewShotClassifier` load it like any adapter; it cannot be trained.

    Args:
        model: A model with a SMAT adapter, which does not change.
        path: Folder to write.
        dtype: Type of the delta; a lossless one keeps its own. In as many bits, float16 is off by an eighth of what
            bfloat16 is; a delta too large for it is refused by the tolerance.
        tolerance: Largest error of the cosine logits, whose range is -10 to 10, that is accepted.
        lossless: Keep gate values as they are, so that task weights are the same to the bit; else in 8 bits.
        images: Pixels `[N, 3, H, W]` to measure that error on, at least 4; random ones by default.

    Returns:
        The header that the file carries: `format_version`, `written_by`, `gates`, `delta` (their types), `logit_error`
        (None where it is 0 by construction), `measured_on`, `left_out`.

    Raises:
        ConfigurationError: The adapter is packed already or disabled, the error is above `tolerance`, there are no
            images to measure it on, or `lossless` is asked for where the delta is not in float32. Nothing is written.
        CheckpointError: The folder holds an adapter that is not packed, or cannot be written to.
    """
    adapter_name = active_adapter(model)
    config = adapter_config(model, adapter_name)
    if config.packed is not None:
        refuse_training(adapter_name)
    if not lossless and images is None:
        images = random_images(model)
    packed: Packed = {}
    for layer, name, values in evaluated_gates(smat_layers(model), adapter_name):
        delta = layer.smat_delta[adapter_name][name].detach()
        if lossless and delta.dtype != torch.float32:
            raise ConfigurationError(
                f"without loss, adapters in torch.float32 are packed, and this one is in {delta.dtype}"
            )
        delta = delta if lossless else delta.to(dtype)
        parameter = PackedParameter(delta.shape, values.shape[1:], len(values))
        parameter.fill(values if lossless else rounded(values), delta, exact=lossless)
        packed[layer, name] = parameter
    header = _header("exact" if lossless else "8 bits", packed)
    if not lossless:
        assert images is not None
        error = logit_error(model, packed, images)
        if not error <= tolerance:
            raise ConfigurationError(
                f"packed so, logits differ by up to {error:.3g}, more than the tolerance of {tolerance:g}: give "
                "dtype=torch.float32 or lossless=True, or a tolerance above it"
            )
        header |= {"logit_error": error, "measured_on": f"{len(images)} images of {images.shape[-1]} pixels"}
    _write(Path(path), model, packed, replace(config, packed=header))
    return header


def save_task(model: PeftModel, path: str | Path, *, dtype: torch.dtype = torch.float16) -> dict[str, Any]:
    """Write what `model.adapt(...)` made of the backbone, the merged mask times the delta, as an adapter of one expert.

    Args:
        model: A model on a task.
        path: Folder to write.
        dtype: Type of what is added to the backbone's weights.

    Returns:
        The header that the file carries.

    Raises:
        ConfigurationError: The model is on no task, an adapter is merged, or `dtype` cannot hold what is added.
        CheckpointError: The folder holds an adapter that is not packed, or cannot be written to.
    """
    adapter_name = active_adapter(model)
    task = unmerged_state(model).task
    if task is None or task.adapter != adapter_name:
        raise ConfigurationError("the model is on no task: call model.adapt(pixel_values, labels) before save_task")
    packed: Packed = {}
    for layer, name in adapted_parameters(model, adapter_name):
        base = getattr(layer.get_base_layer(), name).detach()
        precise = torch.promote_types(base.dtype, torch.float32)
        delta = (task.weights.get(layer.full_name(name), base).to(precise) - base.to(precise)).to(dtype)
        if not delta.isfinite().all():
            raise ConfigurationError(f"what the task adds to {layer.full_name(name)} is not finite in {dtype}")
        packed[layer, name] = PackedParameter(delta.shape, delta.shape, num_experts=1)
        packed[layer, name].fill((delta != 0).float()[None], delta, exact=True)
    header = _header(OF_ONE_TASK, packed)
    config = adapter_config(model, adapter_name)
    config = replace(config, num_experts=1, sparsity_pattern="dense", gate_granularity="element", packed=header)
    _write(Path(path), model, packed, config)
    return header


def describe_packed(header: Mapping[str, Any]) -> str:
    """What a packed adapter's header says, for its card."""
    error = "Task weights are the same to the bit."
    if header["gates"] == OF_ONE_TASK:
        error = f"Weights are those of the task, but for rounding to {header['delta']}."
    elif header["logit_error"] is not None:
        error = (
            f"Logits, which lie between -10 and 10, differ by at most {header['logit_error']:.2g} from those of the "
            f"adapter that it was packed from (measured on {header['measured_on']})."
        )
    return (
        f"This is the adapter's inference form, which cannot be trained: gates ({header['gates']}) and a delta in "
        f"{header['delta']}. {error} Left out: {header['left_out']}."
    )


def _header(gates: str, packed: Packed) -> dict[str, Any]:
    delta = next(iter(packed.values())).delta
    return {
        "format_version": FORMAT_VERSION,
        "written_by": f"smat_peft {__version__}",
        "gates": gates,
        "delta": str(delta.dtype).removeprefix("torch."),
        "logit_error": None,
        "measured_on": None,
        "left_out": LEFT_OUT,
    }


def _write(folder: Path, model: PeftModel, packed: Packed, config: SMATConfig) -> None:
    config_file = folder / CONFIG_NAME
    if config_file.is_file() and not _is_packed(config_file):
        raise CheckpointError(f"{folder} holds an adapter that is not packed; choose another folder")
    config.inference_mode = True
    root = type(smat_layers(model)[0].state.root)
    auto_mapping = {"base_model_class": root.__name__, "parent_library": root.__module__}  # as PEFT's own saving does
    metadata = {"format": "pt", HEADER: json.dumps(config.packed)}
    with moving_into(folder) as scratch:
        save_file(_tensors(model, packed, config), scratch / SAFETENSORS_WEIGHTS_NAME, metadata)
        config.save_pretrained(str(scratch), auto_mapping_dict=auto_mapping if config.task_type is None else None)


def _is_packed(config_file: Path) -> bool:
    try:
        return json.loads(config_file.read_text(encoding="utf-8"))["packed"] is not None
    except (ValueError, KeyError, TypeError):  # of another method, or damaged
        return False


def _tensors(model: PeftModel, packed: Packed, config: SMATConfig) -> dict[str, Tensor]:
    """A state dict of the adapter as it will be loaded: packed parameters, router, modules that are saved whole."""
    saved = get_peft_model_state_dict(model, adapter_name=active_adapter(model), save_embedding_layers=False)
    kept = {key for key in saved if ".smat_" not in key or (config.has_router and ".smat_router." in key)}
    tensors = {key: tensor for key, tensor in saved.items() if key in kept}
    paths = {module: path for path, module in model.named_modules() if isinstance(module, SMATLayer)}
    for (layer, name), parameter in packed.items():
        prefix = f"{paths[layer]}.{CONTAINER}.{name}."
        tensors |= {prefix + part: tensor for part, tensor in parameter.state_dict().items()}
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
