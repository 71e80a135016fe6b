"""The router as one more tuner layer of the base model.

It hangs on the base model's root as `smatrouter`, not on the tuner, so that transformers' own `add_adapter` and
`load_adapter`, Trainer and AutoPeftModel save and load it with the rest. It also carries what all layers of a model
share: the task in force and each adapter's configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from smat_peft.experts.router import Router
from smat_peft.tuner.config import SMATConfig
from smat_peft.tuner.layer import TaskState


class SMATRouter(nn.Module, BaseTunerLayer):
    """Holds the router of each adapter.

    A router has no gradient where experts are mixed evenly, so it is frozen until meta-tuning thaws it.
    """

    CHILD = "smatrouter"  # PEFT skips modules whose name holds the prefix "smat_" when it deletes an adapter

    adapter_layer_names = ("smat_router",)
    other_param_names = ()

    smat_router: Any  # nn.ModuleDict: adapter -> Router
    active_adapters: list[str]
    set_adapter: Callable[..., None]
    merged_adapters: list[str]
    frozen_peft_weight_names: dict[str, tuple[str, ...]]

    def __init__(self, state: TaskState) -> None:
        super().__init__()
        self.state = state
        self.smat_router = nn.ModuleDict()
        self.configs: dict[str, SMATConfig] = {}
        self.frozen_peft_weight_names = {}
        self.merged_adapters = []
        self._disable_adapters = False
        self.in_features = self.out_features = None

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
        """Give an adapter its router, where its configuration has one."""
        self.configs[adapter_name] = config
        if config.has_router:
            assert config.feature_dim is not None
            self.smat_router[adapter_name] = Router(
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
            self.frozen_peft_weight_names[adapter_name] = ("smat_router",)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def router(self, adapter_name: str) -> Router | None:
        """An adapter's router, or None where it mixes its experts evenly."""
        return self.smat_router[adapter_name] if adapter_name in self.smat_router else None  # noqa: SIM401 - no .get

    def thaw(self, adapter_name: str) -> None:
        """Let an adapter's router be trained."""
        self.frozen_peft_weight_names.pop(adapter_name, None)
        router = self.router(adapter_name)
        if router is not None:
            router.requires_grad_(True)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter."""
        super().delete_adapter(adapter_name)
        self.configs.pop(adapter_name, None)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Note that the layers are merged."""
        self.merged_adapters.extend(check_adapters_to_merge(self, adapter_names))

    def unmerge(self) -> None:
        """Note that the layers are no longer merged."""
        self.merged_adapters.clear()
