"""What is adapted where a configuration names no target: the whole backbone, without heads."""

from __future__ import annotations

import re

from torch import nn

from smat_peft.tuner.config import SMATConfig
from smat_peft.tuner.features import CLASSIFICATION_HEADS, backbone_of, feature_kind

EVERYTHING = ".*"  # as a regular expression over module names


def target_everything(config: SMATConfig, model: nn.Module) -> None:
    """Write into a configuration without targets the regular expressions that mean the whole backbone."""
    config.target_modules = EVERYTHING
    if config.layers_to_transform is not None:
        config.target_modules = _in_layers(config.layers_to_transform, config.layers_pattern)
        config.layers_to_transform = config.layers_pattern = None
    heads = [rf"{re.escape(path)}(\..*)?" for path in heads_of(model, config.feature)]
    left_alone = config.exclude_modules or []
    if not isinstance(left_alone, str):
        left_alone = "|".join(rf"(.*\.)?{re.escape(name)}" for name in sorted(left_alone))
    config.exclude_modules = "|".join([part for part in (left_alone, *heads) if part]) or None


def heads_of(model: nn.Module, feature: str) -> list[str]:
    """Paths of the modules that the feature does not need: what stands beside the backbone, and an unused pooler."""
    backbone = backbone_of(model)
    if backbone is model:
        heads = [name for name, _ in model.named_children() if name in CLASSIFICATION_HEADS]
        prefix = ""
    else:
        heads = [name for name, child in model.named_children() if child is not backbone]
        prefix = f"{model.base_model_prefix}."
    if feature_kind(model, feature) in ("cls", "mean") and isinstance(getattr(backbone, "pooler", None), nn.Module):
        heads.append(f"{prefix}pooler")
    return heads


def own_parameters(module: nn.Module) -> list[str]:
    """Names of the floating-point parameters that a module holds itself."""
    return [name for name, p in module.named_parameters(recurse=False) if p.is_floating_point()]


def _in_layers(indices: int | list[int], pattern: str | list[str] | None) -> str:
    """Everything in the layers of these indices, counted by the first number in a module's name, as PEFT counts."""
    numbers = "|".join(str(index) for index in ([indices] if isinstance(indices, int) else indices))
    lists = [pattern] if isinstance(pattern, str) else (pattern or [r"[^.\d]*"])
    return rf"(?:[^.\d]*\.)*?(?:{'|'.join(lists)})\.(?:{numbers})(?:\..*)?"
