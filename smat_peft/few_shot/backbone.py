"""The backbone below a model's adapters: its parameters by name, a run with other weights, a copy to fine-tune.

A run with other weights puts them into the backbone's modules for a while, so only one thread at a time evaluates a
model; the others wait.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from smat_peft.errors import ConfigurationError
from smat_peft.tuner import adapters, tasks
from smat_peft.tuner.features import extract_features, in_chunks
from smat_peft.tuner.routing import SMATRouter
from smat_peft.tuner.shadow import empty_caches, shadow, unshadow
from smat_peft.tuner.side import SMATSide
from smat_peft.tuner.targets import base_modules, own_parameters, owner_of

DEFAULT_BATCH_SIZE = 64

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()  # of the models that are evaluated
_lock_of_locks = threading.Lock()


class Place(NamedTuple):
    """Where a parameter is: the module that owns it, and its name there."""

    owner: nn.Module
    attribute: str

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter itself."""
        parameter: nn.Parameter = self.owner._parameters[self.attribute]  # type: ignore[assignment]
        return parameter


def root_of(model: nn.Module) -> nn.Module:
    """The model that adapters were put into; one without any as it is."""
    layers = adapters.smat_layers(model)
    if layers:
        root: nn.Module = layers[0].state.root
        return root
    return model.get_base_model() if isinstance(model, PeftModel) else model


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def on_device(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    """The model itself where it is there already or no device is named, else a copy there."""
    if device is None:
        return model
    wanted, present = torch.device(device), device_of(model)
    if wanted.type == present.type and wanted.index in (None, present.index):
        return model
    return copy.deepcopy(model).to(wanted)


def feature_of(model: nn.Module) -> str:
    """Which feature of the backbone the model's adapter is for; `"auto"` where it has no experts."""
    return adapters.active_feature(model) if adapters.has_experts(model) else "auto"


def base_parameters(model: nn.Module) -> dict[str, Place]:
    """The floating-point parameters of a model without its adapters, by their names there; tied ones at every name."""
    places = {}
    for path, module in base_modules(root_of(model)):
        trained_whole = isinstance(module, ModulesToSaveWrapper)
        owners = _active(module).named_modules() if trained_whole else [("", owner_of(module))]
        for below, owner in owners:
            for name in own_parameters(owner):
                places[".".join(filter(None, (path, below, name)))] = Place(owner, name)
    return places


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A block without gradient, with every module in evaluation mode, that other threads with this model wait for."""
    with _lock_of_locks:
        lock = _locks.setdefault(root_of(model), threading.RLock())
    with lock, torch.no_grad(), tasks.evaluation_mode(model):
        yield


@contextmanager
def running_with(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Run a model's backbone with other weights; parameters that are not named keep their pre-trained values.

    Raises:
        ConfigurationError: The backbone has no parameter of that name.
    """
    places = base_parameters(model) if weights else {}
    unknown = sorted(set(weights) - set(places))
    if unknown:
        raise ConfigurationError(f"the backbone has no parameter {unknown[0]!r}; the weights belong to another one")
    before = []
    with tasks.task(model, {}) if adapters.has_experts(model) else nullcontext():
        try:
            for name, tensor in weights.items():
                owner, attribute = places[name]
                before.append((owner, shadow(owner, {attribute: tensor})))
            yield
        finally:
            for owner, hidden in reversed(before):
                unshadow(owner, hidden)


def batched_features(
    model: nn.Module, images: Float[Tensor, "N 3 H W"], feature: str, batch_size: int
) -> Float[Tensor, "N D"]:
    """Features of images with the weights in force, so many images at a time, on the model's device."""
    root, device = root_of(model), device_of(model)
    features = in_chunks(lambda batch: extract_features(root, batch.to(device), feature), images, batch_size)
    return features.to(torch.promote_types(features.dtype, torch.float32))  # a mean of half-precision ones is coarse


def frozen_features(
    model: nn.Module, images: Float[Tensor, "N 3 H W"], *, batch_size: int = DEFAULT_BATCH_SIZE
) -> Float[Tensor, "N D"]:
    """Features of images under the pre-trained weights, without gradient. The model comes back as it was."""
    with evaluating(model), running_with(model, {}):
        return batched_features(model, images, feature_of(model), batch_size)


def plain_copy(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The backbone with other weights as a module of its own, without experts, frozen, in the same mode.

    Its tensors share the memory of the model's and of `weights`: they are to be replaced, never written to.
    """
    root = root_of(model)
    shared: dict[int, Any] = {id(buffer): buffer.detach() for buffer in root.buffers()}
    shared |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in root.parameters()}
    for layer in adapters.smat_layers(model):
        if not isinstance(layer, SMATSide):  # what it wraps stands for it
            shared[id(layer)] = copy.deepcopy(layer.get_base_layer(), shared)
    on_no_task = tasks.task(model, {}) if adapters.has_experts(model) else nullcontext()
    with on_no_task:  # whose weights would be copied
        plain: nn.Module = copy.deepcopy(root, shared)
    for layer in adapters.smat_layers(model):
        for hook in copy.deepcopy(layer.hooks, shared):
            hook.remove()
    for path, module in list(plain.named_modules()):
        if isinstance(module, SMATSide):
            module.let_go()
        elif isinstance(module, SMATRouter):
            delattr(plain, SMATRouter.CHILD)
        elif isinstance(module, ModulesToSaveWrapper):
            plain.set_submodule(path, _active(module))
    if adapters.has_experts(model):
        vars(plain).pop("peft_config", None)  # or PEFT would take LoRA for one adapter more
    places = base_parameters(plain)
    for name, tensor in weights.items():
        places[name].parameter.data = tensor
    for module in plain.modules():
        empty_caches(module)
    return plain


def _active(wrapper: ModulesToSaveWrapper) -> nn.Module:
    """What the active adapter trained whole in place of a module, or the module where it did not."""
    copies, active = wrapper.modules_to_save, wrapper.active_adapters[0]
    module: nn.Module = copies[active] if active in copies else wrapper.original_module  # noqa: SIM401 - no .get
    return module
