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
from smat_peft.tuner import tasks
from smat_peft.tuner.config import SMATConfig
from smat_peft.tuner.features import UNUSED_IN_FEATURES, feature_width
from smat_peft.tuner.layer import SMATLayer, SMATLinear, SMATSide, TaskState
from smat_peft.tuner.routing import SMATRouter
from smat_peft.tuner.targets import EVERYTHING, own_parameters, target_everything


class SMATModel(BaseTuner):
    """A model with sparse interpolated experts over its own parameters.

    Args:
        model (`torch.nn.Module`): The model to adapt.
        config ([`SMATConfig`]): The configuration.
        adapter_name (`str`): Name of the adapter, `"default"` by default.

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

    def adapt(self, pixel_values: Tensor, labels: Tensor) -> ExpertWeights:
        """Route a support set, merge once without gradient, and stay on that task until [`reset_task`]."""
        return tasks.adapt(self.model, pixel_values, labels)

    def reset_task(self) -> None:
        """Leave the task that [`adapt`] set."""
        tasks.reset_task(self.model)

    def sparsity(self) -> Tensor:
        """Share of gates that are exactly 0, by expert, `[M]`; in training mode those of training."""
        return tasks.sparsity(self.model)

    def expected_l0(self) -> Tensor:
        """Expected share of open gates, by expert, `[M]`, differentiable."""
        return tasks.expected_l0(self.model)

    # ----- injection -----

    def _prepare_adapter_config(self, peft_config: SMATConfig, model_config: dict[str, Any]) -> SMATConfig:
        if peft_config.feature_dim is None:
            peft_config.feature_dim = feature_width(self.model)
        if peft_config.target_modules is None and peft_config.target_parameters is None:
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
            ConfigurationError: Where the adapter has the name of a module or parameter: PEFT would lose tensors.
        """
        taken = {part for name, _ in model.named_parameters() if ".smat_" not in name for part in name.split(".")}
        if adapter_name in taken:
            raise ConfigurationError(
                f"the adapter cannot be called {adapter_name!r}, the name of a module or parameter of this model"
            )
        # Any module of the model leads to the state; a fresh one where this is the first adapter.
        router = tasks.find_router(model)
        self._state = TaskState() if router is None else router.state
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
                self._adapt_bare(config, adapter_name, model, "")
            # Not before: PEFT takes a model that holds a tuner layer for adapted and would leave its base trainable.
            self._add_router(config, adapter_name, model)

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
        if isinstance(target, SMATLayer):
            names = own_parameters(target.get_base_layer())
            target.update_layer(adapter_name, peft_config, names, peft_config.inference_mode)
        elif next(target.children(), None) is None:
            names = own_parameters(target)
            if names:
                layer_type = SMATLinear if isinstance(target, nn.Linear | Conv1D) else SMATLayer
                layer = layer_type(target, current_key, self._state)
                self._add(layer, adapter_name, peft_config, names)
                setattr(parent, target_name, layer)
        else:
            self._adapt_bare(peft_config, adapter_name, target, current_key)

    def _adapt_bare(self, config: SMATConfig, adapter_name: str, owner: nn.Module, path: str) -> None:
        """Adapt the parameters that a module with children owns itself."""
        names = own_parameters(owner)
        if config.target_modules == EVERYTHING:
            names = [name for name in names if name not in UNUSED_IN_FEATURES]
        if not names:
            return
        side = getattr(owner, SMATSide.CHILD, None)
        if side is None:
            side = SMATSide(owner, path, self._state)
            setattr(owner, SMATSide.CHILD, side)
        self._add(side, adapter_name, config, names)

    def _add(self, layer: SMATLayer, adapter_name: str, config: SMATConfig, names: list[str]) -> None:
        layer.update_layer(adapter_name, config, names, config.inference_mode)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        layer.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _add_router(self, config: SMATConfig, adapter_name: str, model: nn.Module) -> None:
        root = getattr(model, "_orig_mod", model)  # below a compiled model's own wrapper
        router = getattr(root, SMATRouter.CHILD, None)
        if router is None:
            router = SMATRouter(self._state)
            setattr(root, SMATRouter.CHILD, router)
        router.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        router.update_layer(adapter_name, config)
        device = next((p.device for p in model.parameters() if not p.is_meta), None)
        if device is not None and not any(p.is_meta for p in router.parameters()):
            router.to(device)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        for module in list(self.model.modules()):
            if isinstance(module, SMATSide):
                if merge:
                    module.merge(safe_merge=safe_merge, adapter_names=adapter_names)
                module.detach_from_owner()
        root = getattr(self.model, "_orig_mod", self.model)
        if hasattr(root, SMATRouter.CHILD):
            delattr(root, SMATRouter.CHILD)
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
