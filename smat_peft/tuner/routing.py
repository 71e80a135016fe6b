"""The router as one more tuner layer of the base model.

It hangs on the base model's root as `smatrouter`, not on the tuner, so that transformers' own `add_adapter` and
`load_adapter`, Trainer and AutoPeftModel save and load it with the rest. A model none of whose adapters has a router
has no such layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from smat_peft.experts.router import Router
from smat_peft.tuner.config import SMATConfig
from smat_peft.tuner.state import SharedState


class SMATRouter(nn.Module, BaseTunerLayer):
    """Holds the router of each adapter.

    A router has no gradient where experts are mixed evenly, so it is frozen until meta-tuning thaws it.

    Args:
        state: What the layers of the model share; its root gets this layer as a child.
    """

    CHILD = "smatrouter"  # PEFT skips modules whose name holds the prefix "smat_" when it deletes an adapter

    adapter_layer_names = ("smat_router",)
    other_param_names = ()

    smat_router: Any  # nn.ModuleDict: adapter -> Router
    active_adapters: list[str]
    set_adapter: Callable[..., None]
    frozen_peft_weight_names: dict[str, tuple[str, ...]]
    _move_adapter_to_device_of_base_layer: Callable[..., None]

    def __init__(self, state: SharedState) -> None:
        super().__init__()
        self.training = state.root.training
        self.state = state
        self.smat_router = nn.ModuleDict()
        self.frozen_peft_weight_names = {}
        self._disable_adapters = False
        self.in_features = self.out_features = None
        setattr(state.root, self.CHILD, self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Its inputs: where the root is a Sequential, which calls its children one after another."""
        return inputs

    def get_base_layer(self) -> nn.Module:
        """Itself: there is nothing underneath."""
        return self

    @property
    def weight(self) -> None:
        """None: no base weight."""

    @property
    def bias(self) -> None:
        """None: no base bias."""

    def update_layer(self, adapter_name: str, config: SMATConfig) -> None:
        """Give an adapter its router."""
        assert config.feature_dim is not None
        router = Router(
            config.feature_dim,
            config.num_experts,
            heads=config.router_heads,
            mlp_ratio=config.router_mlp_ratio,
            skill_tokens=config.router_skill_tokens,
            spectral_norm=config.router_spectral_norm,
            pooling=config.router_pooling,  # type: ignore[arg-type]
            temperature=config.router_temperature,
            temperature_episodes=config.router_temperature_episodes,
        )
        self.smat_router[adapter_name] = router.train(self.training)
        self.frozen_peft_weight_names[adapter_name] = ("smat_router",)
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
        own = {id(p) for p in self.parameters()}
        of_root = (p for p in self.state.root.parameters() if id(p) not in own)
        parameter = next((p for p in of_root if p.is_floating_point() and not p.is_meta), None)
        return (None, None) if parameter is None else (parameter.device, parameter.dtype)

    def unify_dtype(self, adapter_name: str) -> None:
        """Give a router's buffers the type of its parameters: PEFT casts parameters only."""
        router = self.router(adapter_name)
        if router is not None:
            router.to(dtype=router.keys.dtype)

    def router(self, adapter_name: str) -> Router | None:
        """An adapter's router, or None where it mixes its experts evenly."""
        return self.smat_router[adapter_name] if adapter_name in self.smat_router else None  # noqa: SIM401 - no .get

    def thaw(self, adapter_name: str) -> None:
        """Let an adapter's router be trained."""
        self.frozen_peft_weight_names.pop(adapter_name, None)
        router = self.router(adapter_name)
        if router is not None:
            router.requires_grad_(True)

    @property
    def merged_adapters(self) -> list[str]:
        """Those that layers have merged."""
        return list(dict.fromkeys(name for layer in self.state.layers for name in layer.merged_adapters))

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Nothing: the router changes no weight."""

    def unmerge(self) -> None:
        """Nothing, likewise."""
