"""What `--method` means: sparse experts, and the methods that they are compared with, in one frame.

A method is an adapter, some arguments of training that stand before the user's own, and what is done after training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peft import LoraConfig, PeftConfig, PeftModel
from torch import nn

from smat_peft.few_shot.lora import lora_settings
from smat_peft.meta_tuning.shrinking import prune_delta_, scale_delta_
from smat_peft.tuner.config import SMATConfig
from smat_peft.tuner.subsets import SUBSETS, share_of_parameters

if TYPE_CHECKING:
    from smat_peft.commands.arguments import ModelArguments

CROSS_ENTROPY_ALONE = {"inner_lr": 0, "distillation_weight": 0}  # no step on the support and no teacher, as in PMF


@dataclass(frozen=True)
class Method:
    """A way to meta-tune.

    Attributes:
        about: What it is, for `--help`.
        adapter: Makes the adapter's configuration, for a backbone and the user's settings.
        arguments: Arguments of training that differ from the defaults, by name.
        finish: What is done after training, with a function that scores the model as it stands on validation and
            dev-OOD episodes; returns figures to write down.
    """

    about: str
    adapter: Callable[[nn.Module, ModelArguments], PeftConfig]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    finish: Callable[[PeftModel, ModelArguments, Callable[[], float]], dict[str, float]] | None = None

    @property
    def words(self) -> list[str]:
        """`arguments` as words of a command line."""
        return [f"--{name}={value}" for name, value in self.arguments.items()]


def _experts(backbone: nn.Module, arguments: ModelArguments, pattern: str = "learned") -> SMATConfig:
    return SMATConfig(
        num_experts=arguments.num_experts,
        target_sparsity=arguments.target_sparsity,
        sparsity_pattern=pattern,
        gate_granularity=arguments.gate_granularity,
        gate_init_std=arguments.gate_init_std,
        gate_eval=arguments.gate_eval,
        router_pooling=arguments.router_pooling,
        feature=arguments.feature,
    )


def _random_experts(backbone: nn.Module, arguments: ModelArguments) -> SMATConfig:
    return _experts(backbone, arguments, "random")


def _delta(arguments: ModelArguments, pattern: str, density: float = 1.0, **targets: Any) -> SMATConfig:
    sparsity = 1 - density if pattern != "dense" else 0.0
    return SMATConfig(
        num_experts=1, sparsity_pattern=pattern, target_sparsity=sparsity, feature=arguments.feature, **targets
    )


def _dense(backbone: nn.Module, arguments: ModelArguments) -> SMATConfig:
    return _delta(arguments, "dense")


def _magnitude(backbone: nn.Module, arguments: ModelArguments) -> SMATConfig:
    return _delta(arguments, "magnitude", 1 - arguments.target_sparsity)


def _subset(name: str) -> Callable[[nn.Module, ModelArguments], SMATConfig]:
    """One delta over a part of the backbone, thinned out at random where the part is larger than what may be open."""

    def adapter(backbone: nn.Module, arguments: ModelArguments) -> SMATConfig:
        wanted = 1 - arguments.target_sparsity
        targets = SUBSETS[name](backbone, arguments.feature, wanted)
        share = share_of_parameters(backbone, arguments.feature, targets)
        if share <= wanted:
            return _delta(arguments, "dense", target_parameters=targets)
        return _delta(arguments, "random", wanted / share, target_parameters=targets)

    return adapter


def _lora(backbone: nn.Module, arguments: ModelArguments) -> LoraConfig:
    return LoraConfig(**lora_settings(backbone))


def _wise(model: PeftModel, arguments: ModelArguments, score: Callable[[], float]) -> dict[str, float]:
    return {"share_of_delta": scale_delta_(model, score)}


def _prune(model: PeftModel, arguments: ModelArguments, score: Callable[[], float]) -> dict[str, float]:
    prune_delta_(model, 1 - arguments.target_sparsity)
    return {"density_of_delta": 1 - arguments.target_sparsity}


METHODS: dict[str, Method] = {
    "smat": Method("sparse experts with a router", _experts),
    "dense": Method(
        "one delta without gates, by the query's cross-entropy alone, as in PMF", _dense, CROSS_ENTROPY_ALONE
    ),
    "dense-teachers": Method("the same with smat's own objective and teachers", _dense),
    "wise-ft": Method("dense, then as much of the delta as dev likes best", _dense, CROSS_ENTROPY_ALONE, _wise),
    "dense-pruned": Method("dense, then its largest values alone", _dense, CROSS_ENTROPY_ALONE, _prune),
    "random": Method("experts with random gates, and a router", _random_experts),
    "soft-merge": Method("experts whose gates nothing closes, and a router", _experts, {"sparsity_weight": 0}),
    "magnitude": Method("one delta where the backbone's weights are largest", _magnitude),
    **{
        name: Method(f"one delta over {subset.about}, at random where that is too many", _subset(name))
        for name, subset in SUBSETS.items()
    },
    "lora": Method("LoRA on attention, by cross-entropy alone", _lora, CROSS_ENTROPY_ALONE),
}
