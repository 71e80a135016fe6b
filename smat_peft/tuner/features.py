"""Which feature of which backbone stands for an image, and how wide it is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smat_peft.errors import ConfigurationError
from smat_peft.tuner.class_token import class_token_alone
from smat_peft.tuner.positions import positions_by_scale_factor

# What "auto" takes, by a transformers model's `config.model_type`.
AUTO_FEATURE = {
    "vit": "cls",
    "deit": "cls",
    "dinov2": "cls",
    "dinov2_with_registers": "cls",
    "dinov3_vit": "cls",
    "clip_vision_model": "pooler",
    "siglip_vision_model": "pooler",
    "swin": "pooler",
    "convnext": "pooler",
    "resnet": "pooler",
}
REFERENCE_FEATURE = "reference_cls"
WITHOUT_POOLER = ("cls", REFERENCE_FEATURE, "mean")
POOLERS = ("pooler", "head")  # of transformers' backbones; SigLIP's is called a head
CLASSIFICATION_HEADS = ("classifier", "score", "fc_norm", "head", "fc", "cls_classifier", "distillation_classifier")
UNUSED_IN_FEATURES = ("mask_token",)  # bare parameters that only pre-training reads


def backbone_of(model: nn.Module) -> nn.Module:
    """The part of a transformers model below its head; any other module as it is."""
    below: nn.Module = model.base_model if hasattr(model, "base_model_prefix") else model  # type: ignore[assignment]
    # DINOv3 calls its encoder "model", which transformers takes for the model below a head.
    return below if _takes(type(below).forward, "pixel_values") else model


def feature_kind(model: nn.Module, feature: str) -> str:
    """What `feature` means for this model: itself, or for `"auto"` `"cls"`, `"mean"`, `"pooler"` or `"output"`."""
    if feature != "auto":
        return feature
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type is None:
        return "output"
    return AUTO_FEATURE.get(model_type, "mean")


def feature_width(model: nn.Module) -> int | None:
    """Feature width D as the model's config states it, or None; None also for a model that does not take images."""
    if getattr(model, "main_input_name", "pixel_values") != "pixel_values":
        return None
    config = getattr(model, "config", None)
    if getattr(config, "hidden_sizes", None):
        return int(config.hidden_sizes[-1])  # type: ignore[union-attr]
    width = getattr(config, "hidden_size", None)
    return None if width is None else int(width)


def in_chunks(forward: Callable[[Tensor], Tensor], images: Tensor, size: int | None) -> Tensor:
    """Features `[N, D]` of images; of more than `size` in parts, which the backward pass computes again."""
    if size is None or len(images) <= size:
        return forward(images)
    run = functools.partial(checkpoint, forward, use_reentrant=False) if torch.is_grad_enabled() else forward
    return torch.cat([run(part) for part in images.split(size)])


def extract_features(model: nn.Module, pixel_values: Tensor, feature: str = "auto") -> Tensor:
    """Features `[N, D]` of images `[N, 3, H, W]`.

    Args:
        model: A transformers vision model, with or without a head, or any module that maps images to features.
        pixel_values: Images as the model's image processor leaves them. A size other than the pre-training's has the
            position embeddings interpolated, where the model can.
        feature: `"auto"`, `"cls"`, `"reference_cls"`, `"mean"`, `"pooler"`, or the path of a module whose output is the
            feature. `"reference_cls"` is the class token with position embeddings interpolated as the reference does.
    """
    backbone, kind = backbone_of(model), feature_kind(model, feature)
    if kind == "cls":
        with class_token_alone(backbone):
            return _cls(_call(backbone, pixel_values))
    if kind == REFERENCE_FEATURE:
        with positions_by_scale_factor(backbone):
            return extract_features(backbone, pixel_values, "cls")
    if kind in _FROM_OUTPUT:
        return _FROM_OUTPUT[kind](_call(backbone, pixel_values))
    try:
        module = model.get_submodule(kind)
    except AttributeError as error:
        raise ConfigurationError(
            f"feature={kind!r} is neither auto, cls, reference_cls, mean, pooler nor a module's path"
        ) from error
    caught: list[Any] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    try:
        _call(model, pixel_values)
    finally:
        handle.remove()
    if not caught:
        raise ConfigurationError(f"feature={kind!r}: that module is not used in the model's forward pass")
    return _pool(caught[-1])


def _call(module: nn.Module, pixel_values: Tensor) -> Any:
    if getattr(getattr(module, "config", None), "mask_ratio", 0) > 0:
        raise ConfigurationError(
            f"{type(module).__name__} hides a random part of each image, so that its features are random, too: set "
            "model.config.mask_ratio = 0"
        )
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), pixel_values.dtype)
    if _takes(type(module).forward, "interpolate_pos_encoding"):
        return module(pixel_values.to(dtype), interpolate_pos_encoding=True)
    return module(pixel_values.to(dtype))


@functools.cache
def _takes(forward: Callable[..., Any], argument: str) -> bool:
    return argument in inspect.signature(forward).parameters


def _last_hidden_state(output: Any) -> Tensor:
    if not hasattr(output, "last_hidden_state"):
        raise ConfigurationError(
            f"the model's {type(output).__name__} has no last_hidden_state to take features from: load the model with "
            "AutoModel, or name the module whose output is the feature, as in SMATConfig(feature='layernorm')"
        )
    hidden: Tensor = output.last_hidden_state
    return hidden


def _cls(output: Any) -> Tensor:
    return _last_hidden_state(output)[:, 0]


def _pooler(output: Any) -> Tensor:
    if getattr(output, "pooler_output", None) is None:
        raise ConfigurationError("feature='pooler': this model has no pooler output; try feature='mean'")
    pooled: Tensor = output.pooler_output
    return pooled.flatten(1)


def _mean(output: Any) -> Tensor:
    return _pool(_last_hidden_state(output))


def _pool(output: Any) -> Tensor:
    """One vector an image: tokens [N, T, D] and maps [N, D, H, W] are averaged over positions."""
    if not isinstance(output, torch.Tensor):
        output = output[0]
    if output.ndim == 4:
        return output.mean((2, 3))
    return output.mean(1) if output.ndim == 3 else output


_FROM_OUTPUT: dict[str, Callable[[Any], Tensor]] = {"mean": _mean, "pooler": _pooler, "output": _pool}
