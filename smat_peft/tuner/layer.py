"""SMATLayer: the delta and the gates over the parameters that one module owns, and what these are in a call."""

from __future__ import annotations

import warnings
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from smat_peft.errors import ConfigurationError
from smat_peft.experts.counting import open_gates, open_somewhere
from smat_peft.experts.gates import EVAL_TEMPERATURE, TRAIN_TEMPERATURE, gate_shape
from smat_peft.experts.interpolate import interpolate
from smat_peft.experts.packed import merge_packed_into
from smat_peft.experts.router import even_weights
from smat_peft.tuner.calls import ShadowingCalls
from smat_peft.tuner.config import SMATConfig
from smat_peft.tuner.fresh import fresh_tensors
from smat_peft.tuner.kept_gates import KeptGates
from smat_peft.tuner.shadow import empty_caches
from smat_peft.tuner.state import SharedState, Task


class SMATLayer(ShadowingCalls, BaseTunerLayer):
    """Wraps a module that owns parameters; holds one delta and M gates for each of them and each adapter.

    Args:
        base_layer: The module to adapt.
        path: Its name in the base model.
        state: What the layers of the model share.
    """

    adapter_layer_names = ("smat_delta", "smat_gates", "smat_packed")
    other_param_names = ()

    smat_delta: Any  # nn.ModuleDict of nn.ParameterDict: adapter -> parameter -> [*shape]
    smat_gates: Any  # the same: [M, *gate_shape]
    smat_packed: Any  # in place of both, nn.ModuleDict of nn.ModuleDict: adapter -> parameter -> PackedParameter
    active_adapters: list[str]
    set_adapter: Callable[..., None]
    merged_adapters: list[str]
    frozen_peft_weight_names: dict[str, tuple[str, ...]]

    def __init__(self, base_layer: nn.Module, path: str, state: SharedState) -> None:
        super().__init__()
        self.training = base_layer.training  # gates differ between the modes
        self._attach(base_layer)
        self.path = path
        self.state = state
        state.layers.append(self)
        self.smat_delta = nn.ModuleDict()
        self.smat_gates = nn.ModuleDict()
        self.smat_packed = nn.ModuleDict()
        self.frozen_peft_weight_names = {}
        self.merged_adapters = []
        self._before_merge: list[dict[str, Tensor]] = []
        self.kept_gates: dict[str, KeptGates] = {}
        self._disable_adapters = False
        self.in_features = getattr(base_layer, "in_features", None)
        self.out_features = getattr(base_layer, "out_features", None)

    def _attach(self, owner: nn.Module) -> None:
        self.base_layer = owner

    def update_layer(self, adapter_name: str, config: SMATConfig, parameter_names: list[str]) -> None:
        """Give an adapter a delta and gates over the named parameters of the module."""
        containers = (self.smat_delta, self.smat_gates, self.smat_packed)
        fresh = fresh_tensors(self.get_base_layer(), parameter_names, config)
        for container, made in zip(containers, fresh, strict=True):
            if adapter_name in container:  # further parameters of a module that this adapter has already
                container[adapter_name].update(made)
            elif made:
                container[adapter_name] = made
        self.state.configs[adapter_name] = config
        if config.sparsity_pattern != "learned":
            self.frozen_peft_weight_names[adapter_name] = ("smat_gates",)
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter."""
        super().delete_adapter(adapter_name)
        self.kept_gates.pop(adapter_name, None)
        self.state.forget(adapter_name)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
        parameter = next(base_layer.parameters(recurse=False), None)
        return (None, None) if parameter is None else (parameter.device, parameter.dtype)

    def gate_temperature(self, adapter_name: str, training: bool) -> float:
        """Temperature of an adapter's gates in training or in evaluation."""
        as_trained = training or self.state.configs[adapter_name].gate_eval == "train"
        return TRAIN_TEMPERATURE if as_trained else EVAL_TEMPERATURE

    def covered(self, adapter_name: str, name: str) -> float:
        """How many scalars one gate of a parameter covers."""
        shape: torch.Size = getattr(self.get_base_layer(), name).shape
        gates = gate_shape(shape, self.state.configs[adapter_name].gate_granularity)  # type: ignore[arg-type]
        return shape.numel() / gates.numel()

    def open_gates(self, adapter_name: str, name: str, training: bool) -> Tensor:
        """How many gates of each expert are above 0, `[M]`; of a packed adapter those of evaluation."""
        if adapter_name in self.smat_packed:
            return self.smat_packed[adapter_name][name].gates.open_gates()
        return open_gates(self.smat_gates[adapter_name][name], self.gate_temperature(adapter_name, training))

    def open_somewhere(self, adapter_name: str, name: str) -> int:
        """How many positions of a parameter's gates some expert opens, in evaluation."""
        if adapter_name in self.smat_packed:
            return self.smat_packed[adapter_name][name].gates.open_somewhere()
        return open_somewhere(self.smat_gates[adapter_name][name], self.gate_temperature(adapter_name, training=False))

    def base_parameter(self, name: str) -> Tensor:
        """The module's own parameter, to mix experts onto.

        Raises:
            ConfigurationError: It is not there.
        """
        base: Tensor = getattr(self.get_base_layer(), name)
        if base.is_meta:
            raise ConfigurationError(
                f"{self.full_name(name)} has no values: it was offloaded, or never loaded. Experts are mixed onto "
                "whole weights; load the model without offloading"
            )
        return base

    def mix_evenly(self, adapter_name: str, training: bool, onto: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Parameters with an adapter's experts mixed evenly, by their names in the module.

        Args:
            adapter_name: The adapter.
            training: Whether to use the gates of training.
            onto: What to add the mixed delta to; the module's own parameters by default.
        """
        device = next(self.get_base_layer().parameters(recurse=False)).device
        weights = even_weights(self.state.configs[adapter_name].num_experts, device).weights
        temperature = self.gate_temperature(adapter_name, training)
        mixed = dict(onto or {})
        for name in self.adapted(adapter_name):
            base = mixed[name] if name in mixed else self.base_parameter(name)
            if adapter_name in self.smat_packed:
                packed = self.smat_packed[adapter_name][name]
                mixed[name] = base.new_empty(base.shape)
                merge_packed_into([mixed[name]], [base], [packed.delta], [packed.gates], weights)
            else:
                delta, gates = self.smat_delta[adapter_name][name], self.smat_gates[adapter_name][name]
                mixed[name] = interpolate(base, delta, gates, weights.to(delta), temperature)
        return mixed

    def get_delta_weight(self, adapter_name: str, name: str = "weight") -> Tensor:
        """What an adapter adds to a parameter: on its task where one is set, else with its experts mixed evenly."""
        base: Tensor = getattr(self.get_base_layer(), name)
        return self._merged(adapter_name).get(name, base) - base

    def effective_parameters(self) -> dict[str, Tensor]:
        """What the module's parameters are in a call now, by name; those left out keep their own values."""
        if self.disable_adapters or self.merged:
            return {}
        task = self.state.task
        effective: dict[str, Tensor] = {}
        if task is not None and task.adapter in self.active_adapters:
            if not task.weights:  # the backbone's own: most calls, when features are taken
                return effective
            effective = self._from_task(task)
        for adapter_name in self.active_adapters:
            if self.adapted(adapter_name) and (task is None or task.adapter != adapter_name):
                effective = self.mix_evenly(adapter_name, self.training, effective)
        return effective

    def adapted(self, adapter_name: str) -> list[str]:
        """Names, in the module, of the parameters that an adapter adapts."""
        for container in (self.smat_delta, self.smat_packed):
            if adapter_name in container:
                return list(container[adapter_name])
        return []

    def parameter_names(self) -> list[str]:
        """Names, in the module, of the parameters that some adapter adapts."""
        adapters = (*self.smat_delta, *self.smat_packed)
        return list(dict.fromkeys(name for adapter_name in adapters for name in self.adapted(adapter_name)))

    def full_name(self, name: str) -> str:
        """A parameter's name in the base model."""
        return f"{self.path}.{name}" if self.path else name

    def _from_task(self, task: Task) -> dict[str, Tensor]:
        named = ((name, task.weights.get(self.full_name(name))) for name in self.parameter_names())
        return {name: weight for name, weight in named if weight is not None}

    def prepare_call(self) -> None:
        """Unmerge where adapters are disabled."""
        if self.disable_adapters and self.merged:
            self.unmerge()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write adapters into the module's parameters, with evaluation gates: the task's weights where a task is set.

        Raises:
            ValueError: With `safe_merge`, where a merged weight would not be finite; nothing has changed then.
        """
        self.recover()
        owner = self.get_base_layer()
        for adapter_name in check_adapters_to_merge(self, adapter_names):
            if not self.adapted(adapter_name):
                continue
            merged = self._merged(adapter_name)
            if safe_merge:
                _check_finite(adapter_name, merged)
            self._before_merge.append({name: getattr(owner, name).data for name in merged})
            for name, weight in merged.items():
                getattr(owner, name).data = weight.detach()
            empty_caches(owner)
            self.merged_adapters.append(adapter_name)

    def check_merge(self, adapter_names: list[str] | None = None) -> None:
        """Raise the ValueError of a safe merge beforehand."""
        for adapter_name in adapter_names or self.active_adapters:
            if adapter_name not in self.merged_adapters:
                _check_finite(adapter_name, self._merged(adapter_name))

    @torch.inference_mode(False)  # what is made there cannot be trained any more
    @torch.no_grad()
    def _merged(self, adapter_name: str) -> dict[str, Tensor]:
        """The module's parameters as they are now, with what an adapter adds."""
        task = self.state.task
        if task is None or task.adapter != adapter_name:
            return self.mix_evenly(adapter_name, training=False)
        owner, originals = self.get_base_layer(), ChainMap(*self._before_merge)
        return {
            name: getattr(owner, name) + (weight - originals[name]) if name in originals else _ordinary(weight)
            for name, weight in self._from_task(task).items()
        }

    def unmerge(self) -> None:
        """Give the module its own parameters back, to the bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.recover()
        owner = self.get_base_layer()
        while self.merged_adapters:
            self.merged_adapters.pop()
            for name, original in self._before_merge.pop().items():
                getattr(owner, name).data = original
        empty_caches(owner)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SMATLayer:
        """Go to another device or type, with what unmerging gives back and the weights of the task in force."""
        super()._apply(fn, recurse)
        self.kept_gates.clear()
        self._before_merge = [{name: fn(tensor) for name, tensor in saved.items()} for saved in self._before_merge]
        if self.state.task is not None:
            own = {self.full_name(name): weight for name, weight in self._from_task(self.state.task).items()}
            self.state.task.weights.update({name: fn(weight).contiguous() for name, weight in own.items()})
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get("_modules", {})
            if "base_layer" not in modules:
                raise
            return getattr(modules["base_layer"], name)

    def __repr__(self) -> str:
        return "smat." + super().__repr__()


class SMATLinear(SMATLayer):
    """A wrapped Linear; PEFT's `all-linear` knows adapted linear layers by their class name."""


def adapted_by(layers: Iterable[SMATLayer], adapter_name: str) -> Iterator[tuple[SMATLayer, str]]:
    """The parameters of some layers that an adapter adapts: the layer of each, and its name in the module."""
    return ((layer, name) for layer in layers for name in layer.adapted(adapter_name))


def _check_finite(adapter_name: str, merged: dict[str, Tensor]) -> None:
    if not all(torch.isfinite(weight).all() for weight in merged.values()):
        raise ValueError(f"NaNs detected in the merged weights. The adapter {adapter_name} seems to be broken")


def _ordinary(weight: Tensor) -> Tensor:
    return weight.clone() if weight.is_inference() else weight
