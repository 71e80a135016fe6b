"""What a configuration means: which modules and parameters of a model, and all but the heads where it names none."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Set
from itertools import accumulate

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from smat_peft.errors import ConfigurationError
from smat_peft.tuner.config import SMATConfig
from smat_peft.tuner.features import (
    CLASSIFICATION_HEADS,
    POOLERS,
    UNUSED_IN_FEATURES,
    WITHOUT_POOLER,
    backbone_of,
    feature_kind,
)

INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
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
        left_alone = "|".join(rf"(.*\.)?{re.escape(name)}(\..*)?" for name in sorted(left_alone))
    config.exclude_modules = "|".join([part for part in (left_alone, *heads) if part]) or None


def heads_of(model: nn.Module, feature: str) -> list[str]:
    """Paths of the modules that the feature does not need: what stands beside the backbone, and an unused pooler."""
    backbone = backbone_of(model)
    poolers = POOLERS if hasattr(model, "base_model_prefix") else ()
    if backbone is model:
        heads = [name for name, _ in model.named_children() if name in CLASSIFICATION_HEADS and name not in poolers]
        prefix = ""
    else:
        heads = [name for name, child in model.named_children() if child is not backbone]
        prefix = f"{model.base_model_prefix}."
    if feature_kind(model, feature) in WITHOUT_POOLER:
        heads += [f"{prefix}{name}" for name in poolers if isinstance(getattr(backbone, name, None), nn.Module)]
    return heads


def own_parameters(module: nn.Module) -> list[str]:
    """Names of the floating-point parameters that a module holds itself."""
    return [name for name, p in module.named_parameters(recurse=False) if p.is_floating_point()]


def adaptable_parameters(config: SMATConfig, module: nn.Module, tied: Set[nn.Parameter]) -> list[str]:
    """Names of a targeted module's own parameters that an adapter can reach.

    A parameter of several names (`tied`) would get a delta at each of them or at one, and merging writes to all: where
    no target is named, it is left alone.

    Raises:
        ConfigurationError: The module's weights are quantised: a delta as large as they would be is added to them.
    """
    weight = getattr(module, "weight", None)
    if hasattr(module, "qweight") or (isinstance(weight, Tensor) and weight.dtype in INTEGERS):
        raise ConfigurationError(
            f"SMAT adapts weights of full or half precision, and this {type(module).__name__} is quantised: load the "
            "model without a quantization_config, or name the module in exclude_modules"
        )
    names = own_parameters(module)
    shared = [name for name in names if getattr(module, name) in tied]
    if config.target_modules == EVERYTHING:
        return [name for name in names if name not in UNUSED_IN_FEATURES and name not in shared]
    if shared:
        warnings.warn(
            f"{shared[0]} of a {type(module).__name__} is the parameter of another module, too: merging changes it for "
            "both, a call for this one alone",
            stacklevel=2,
        )
    return names


def tied_parameters(model: nn.Module) -> set[nn.Parameter]:
    """The parameters of a model that have several names: two modules own them, or their module has two names itself."""
    counts = Counter(p for _, p in model.named_parameters(remove_duplicate=False))
    return {parameter for parameter, count in counts.items() if count > 1}


def is_trained_whole(model: nn.Module, path: str) -> bool:
    """Whether the module at a path is, or is inside of, one that some adapter trains whole (`modules_to_save`)."""
    around = accumulate(path.split("."), "{}.{}".format)
    return any(isinstance(model.get_submodule(each), AuxiliaryTrainingWrapper) for each in around)


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model by their names in it, without what adapters added; a wrapper stands for what it wraps.

    So does PEFT's wrapper of a module that an adapter trains whole (`modules_to_save`).
    """
    inside = None
    for path, module in model.named_modules():
        if inside is not None and path.startswith(inside):
            continue
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            inside = f"{path}."
            if not {"base_layer", "original_module"} & set(module._modules):
                continue
        yield path, module


def targeted_parameters(config: SMATConfig, model: nn.Module) -> list[tuple[str, str]]:
    """What `target_parameters` means: the path of the owner, and the parameter's name."""
    endings = tuple(f".{target}" for target in config.target_parameters or ())
    return [
        (path, name)
        for path, module in base_modules(model)
        for name in own_parameters(owner_of(module))
        if f".{path}.{name}".endswith(endings)
    ]


def owner_of(module: nn.Module) -> nn.Module:
    """The module that owns the parameters: what a wrapper wraps, any other module itself."""
    owner: nn.Module = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return owner


def base_parameter_names(model: nn.Module) -> list[str]:
    """Names of a base model's parameters as they are without adapters; a module trained whole counts, too."""
    names = []
    for path, module in base_modules(model):
        owner = module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else owner_of(module)
        recurse = isinstance(module, AuxiliaryTrainingWrapper)
        names += [f"{path}.{name}" if path else name for name, _ in owner.named_parameters(recurse=recurse)]
    return names


def names_taken(model: nn.Module) -> set[str]:
    """Every part of the names of a base model's modules and parameters."""
    return {
        part
        for path, module in base_modules(model)
        for part in (*path.split("."), *(name for name, _ in owner_of(module).named_parameters(recurse=False)))
    }


def _in_layers(indices: int | list[int], pattern: str | list[str] | None) -> str:
    """Everything in the layers of these indices, counted by the first number in a module's name, as PEFT counts."""
    numbers = "|".join(str(index) for index in ([indices] if isinstance(indices, int) else indices))
    lists = [pattern] if isinstance(pattern, str) else (pattern or [r"[^.\d]*"])
    return rf"(?:[^.\d]*\.)*?(?:{'|'.join(lists)})\.(?:{numbers})(?:\..*)?"
