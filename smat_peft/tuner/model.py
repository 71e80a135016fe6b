"""SMATModel: the tuner that PEFT drives, thin over the functions of `tasks`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from accelerate import init_empty_weights
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from smat_peft.errors import ConfigurationError
from smat_peft.experts.prototypes import class_means
from smat_peft.experts.router import ExpertWeights
from smat_peft.tuner import adapters, tasks
from smat_peft.tuner.config import SMATConfig
from smat_peft.tuner.features import feature_width
from smat_peft.tuner.layer import SMATLayer, SMATLinear
from smat_peft.tuner.packed import CONTAINER, refuse_training
from smat_peft.tuner.readers import reads_parameters_of
from smat_peft.tuner.routing import SMATRouter
from smat_peft.tuner.side import SMATSide
from smat_peft.tuner.state import SharedState
from smat_peft.tuner.targets import (
    adaptable_parameters,
    is_trained_whole,
    names_taken,
    owner_of,
    target_everything,
    targeted_parameters,
    tied_parameters,
)

COMPLETED_FOR = "_completed_for"  # a configuration's attribute: width and class of the model that completed it


class SMATModel(BaseTuner):
    """A model with sparse interpolated experts over its own parameters.

    Made as PEFT's other tuners are, of a model, a [`SMATConfig`] and the adapter's name.

    Example:
        ```py
        >>> model = get_peft_model(backbone, SMATConfig())
        >>> model.adapt(support_pixels, support_labels)  # merged for this task until model.reset_task()
        >>> features = model.features(query_pixels)
        ```
    """

    prefix = "smat_"
    tuner_layer_cls = BaseTunerLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - PEFT's declaration

    # ----- tasks: see smat_peft.tuner.tasks -----

    def features(self, pixel_values: Tensor) -> Tensor:
        """Features `[N, D]` of images `[N, 3, H, W]` with the weights in force."""
        return tasks.features(self.model, pixel_values)

    def prototypes(self, features: Tensor, labels: Tensor) -> Tensor:
        """Class means `[C, D]` of features `[N, D]` with labels `0..C-1`, `[N]`."""
        return class_means(features, labels)

    def route(
        self, prototypes: Tensor, *, uniform: Tensor | None = None, generator: torch.Generator | None = None
    ) -> ExpertWeights:
        """Expert weights for prototypes `[C, D]` of pre-trained features; with noise in training mode only."""
        return tasks.route(self.model, prototypes, uniform=uniform, generator=generator)

    def interpolate(self, weights: Tensor) -> dict[str, Tensor]:
        """Task weights for expert weights `[M]`, by the base model's own parameter names; differentiable."""
        return tasks.interpolate(self.model, weights)

    def task(self, weights: Tensor | Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Run with the weights of one task: expert weights `[M]`, or task weights by name (`{}`: the backbone's)."""
        return tasks.task(self.model, weights)

    def adapt(self, pixel_values: Tensor, labels: Tensor, *, keep_gates: bool = False) -> ExpertWeights:
        """Route a support set, merge once without gradient, and stay on that task until [`reset_task`] (METHOD 6).

        Args:
            pixel_values: Support images `[N, 3, H, W]`.
            labels: Their labels `0..C-1`, `[N]`.
            keep_gates: Keep the values of the evaluated gates for the tasks to come: two bytes a gate, and task weights
                that differ by up to 2.5e-4 of the delta.

        Raises:
            ConfigurationError: An adapter is merged, or not exactly one is active.
            DataError: Labels are not 0 to C-1, one an image, or a class between two others has none.
        """
        return tasks.adapt(self.model, pixel_values, labels, keep_gates=keep_gates)

    def compile_interpolation(self) -> bool:
        """Generate faster code for [`adapt`], once; takes up to a minute. Returns whether there is a compiler."""
        return tasks.compile_interpolation(self.model)

    def reset_task(self) -> None:
        """Leave the task that [`adapt`] set."""
        tasks.reset_task(self.model)

    def sparsity(self) -> Tensor:
        """Share of gates that are exactly 0, by expert, `[M]`; in training mode those of training."""
        return adapters.sparsity(self.model)

    def expected_l0(self) -> Tensor:
        """Expected share of open gates, by expert, `[M]`, differentiable."""
        return adapters.expected_l0(self.model)

    def unadapted_parameters(self) -> list[str]:
        """Names of the base model's own parameters that the active adapter does not reach."""
        return adapters.unadapted_parameters(self.model)

    # ----- injection -----

    def _prepare_adapter_config(self, peft_config: SMATConfig, model_config: dict[str, Any]) -> SMATConfig:
        names_no_target = peft_config.target_modules is None and peft_config.target_parameters is None
        plain: Any = getattr(self.model, "_orig_mod", self.model)  # below a compiled model's own wrapper
        found, earlier = (feature_width(plain), type(plain).__name__), getattr(peft_config, COMPLETED_FOR, None)
        if earlier not in (None, found):
            raise ConfigurationError(
                "this SMATConfig was completed for another model, of other features or another class: make another one"
            )
        if peft_config.feature_dim is None or names_no_target:
            setattr(peft_config, COMPLETED_FOR, found)
        if peft_config.feature_dim is None:
            peft_config.feature_dim = found[0]
        if names_no_target:
            target_everything(peft_config, self.model)
        return peft_config

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Adapt the targeted parameters of `model`; see [`peft.tuners.tuners_utils.BaseTuner.inject_adapter`].

        Raises:
            ConfigurationError: Where one of several adapters has the name of a module or parameter: PEFT would lose
                tensors of the others when it saves them. Or where what is targeted has no parameter to adapt.
        """
        several = len(self.peft_config) > 1
        clashing = sorted(names_taken(model) & set(self.peft_config)) if several else []
        if clashing:
            raise ConfigurationError(
                f"beside another, an adapter cannot be called {clashing[0]!r}, the name of a module or parameter of "
                "this model"
            )
        # One for the whole model; a fresh one where this is the first adapter.
        root = getattr(model, "_orig_mod", model)  # below a compiled model's own wrapper
        self._state = next((layer.state for layer in adapters.smat_layers(model)), None) or SharedState(root)
        self._tied = tied_parameters(root)
        given: SMATConfig = self.peft_config[adapter_name]
        if given.packed is not None and not given.inference_mode:
            refuse_training(adapter_name)
        super().inject_adapter(
            model,
            adapter_name,
            autocast_adapter_dtype=autocast_adapter_dtype,
            low_cpu_mem_usage=low_cpu_mem_usage,
            state_dict=state_dict,
        )
        config: SMATConfig = self.peft_config[adapter_name]
        with _meta_parameters(low_cpu_mem_usage):
            if config.target_modules and self._check_target_module_exists(config, ""):
                self._create_and_replace(config, adapter_name, model, "", model, "")  # PEFT leaves the root out
            if not any(layer.adapted(adapter_name) for layer in adapters.smat_layers(model)):
                raise ConfigurationError(
                    f"what target_modules={config.target_modules!r} and target_parameters={config.target_parameters!r} "
                    "name has no parameter that can be adapted"
                )
            # Not before: PEFT takes a model that holds a tuner layer for adapted and would leave its base trainable.
            if config.has_router:
                self._add_router(config, adapter_name)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """PEFT looks for the name in the last two parts of a key; a packed parameter has two parts after it."""
        path, container, rest = key.partition(f".{CONTAINER}.")
        if container:
            return path + container + rest.removeprefix(f"{adapter_name}.")
        return super()._remove_adapter_name_from_key(key, adapter_name)

    def _create_and_replace(
        self,
        peft_config: SMATConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, SMATSide | SMATRouter) or is_trained_whole(self._state.root, current_key):
            return  # an earlier adapter's; what is beside a module is reached through that module
        names = adaptable_parameters(peft_config, owner_of(target), self._tied)
        if parameter_name is not None:
            names = [name for name in names if name == parameter_name]
        if not names:
            return
        layer = self._layer_of(target, target_name, parent, current_key)
        layer.update_layer(adapter_name, peft_config, names)
        layer.set_adapter(self.active_adapters, inference_mode=peft_config.inference_mode)

    def _layer_of(self, target: nn.Module, target_name: str, parent: nn.Module, path: str) -> SMATLayer:
        """The layer of a module: the one it has, one around it, or one beside it where it has children or no parent."""
        if isinstance(target, SMATLayer):
            return target
        if target is parent or next(target.children(), None) is not None:
            return getattr(target, SMATSide.CHILD, None) or SMATSide(target, path, self._state)
        layer_type = SMATLinear if isinstance(target, nn.Linear | Conv1D) else SMATLayer
        layer = layer_type(target, path, self._state)
        if reads_parameters_of(parent, target_name):
            layer.hold_during_calls_of(parent)
        self._replace_module(parent, target_name, layer, target)
        return layer

    def _inject_parameters(
        self, peft_config: SMATConfig, model: nn.Module, adapter_name: str, low_cpu_mem_usage: bool
    ) -> list[str]:
        targeted = targeted_parameters(peft_config, model)
        for path, name in targeted:
            module = model.get_submodule(path)  # by now its wrapper, where another of its parameters came before
            parent = model.get_submodule(path.rpartition(".")[0])
            with _meta_parameters(low_cpu_mem_usage):
                self._create_and_replace(
                    peft_config, adapter_name, module, path.rpartition(".")[2], parent, path, parameter_name=name
                )
        return [f"{path}.{name}" if path else name for path, name in targeted]

    def _add_router(self, config: SMATConfig, adapter_name: str) -> None:
        router = getattr(self._state.root, SMATRouter.CHILD, None) or SMATRouter(self._state)
        router.update_layer(adapter_name, config)
        router.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        router = adapters.find_router(self.model)
        if router is not None:
            router.unify_dtype(adapter_name)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge and safe_merge:  # before anything has changed
            for layer in self._state.layers:
                layer.check_merge(adapter_names)
        for module in list(self.model.modules()):
            if isinstance(module, SMATSide) and merge:
                module.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            if isinstance(module, SMATLayer):
                module.let_go()
        root = self._state.root
        if hasattr(root, SMATRouter.CHILD):
            delattr(root, SMATRouter.CHILD)
        self._state = SharedState(root)  # the layers, and all they hold, are for nothing any more
        return super()._unload_and_optionally_merge(
            merge=merge, progressbar=progressbar, safe_merge=safe_merge, adapter_names=adapter_names
        )

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise ConfigurationError(
                "SMAT cannot choose adapters sample by sample (adapter_names); run each adapter's samples on their own"
            )
        yield


@contextmanager
def _meta_parameters(low_cpu_mem_usage: bool) -> Iterator[None]:
    if not low_cpu_mem_usage:
        yield
        return
    with init_empty_weights():
        yield
