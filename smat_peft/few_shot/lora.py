"""Low-rank adaptation of attention while fine-tuning on a support set (METHOD 11c), by PEFT's own LoRA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from smat_peft.errors import ConfigurationError

RANK = 8  # this, alpha and the dropout are METHOD 11c's
ALPHA = 32
DROPOUT = 0.1

# What the query and the value of attention are called: by transformers now, by older versions, and where one
# linear layer makes query, key and value at once (timm, DINO's own code).
QUERY_AND_VALUE = ("q_proj", "v_proj", "query", "value", "qkv")

_ADAPTER = "task"


def lora_settings(backbone: nn.Module, dropout: float = DROPOUT) -> dict[str, Any]:
    """The arguments of `LoraConfig` for the query and value projections of a backbone.

    Raises:
        ConfigurationError: The backbone has no such projections.
    """
    targets = [
        path
        for path, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] in QUERY_AND_VALUE
    ]
    if not targets:
        raise ConfigurationError(
            f"LoRA needs linear layers called {', '.join(QUERY_AND_VALUE)}, and {type(backbone).__name__} has none; "
            "adapt it another way"
        )
    return {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": dropout, "target_modules": targets, "bias": "none"}


def inject_lora(backbone: nn.Module, dropout: float = DROPOUT) -> None:
    """Put LoRA into the query and value projections of a plain backbone; only it is trainable then.

    Its first B is 0, which changes nothing; A is drawn from torch's global generator.

    Args:
        backbone: Changed in place. Its modes are kept; LoRA's own modules are in training mode, as all new ones.
        dropout: Of LoRA's input.

    Raises:
        ConfigurationError: The backbone has no such projections, or an adapter of another method is on it.
    """
    if any(isinstance(module, BaseTunerLayer) for module in backbone.modules()):
        raise ConfigurationError("the model has a PEFT adapter already; merge it first (model.merge_and_unload())")
    inject_adapter_in_model(LoraConfig(**lora_settings(backbone, dropout)), backbone, _ADAPTER)


def merged_lora(backbone: nn.Module) -> dict[str, Tensor]:
    """The weights that LoRA changes, by the plain backbone's parameter names, with LoRA added to them."""
    return {
        f"{path}.weight": layer.get_base_layer().weight + layer.get_delta_weight(_ADAPTER)
        for path, layer in _lora_layers(backbone)
    }


def _lora_layers(backbone: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    return ((path, module) for path, module in backbone.named_modules() if isinstance(module, LoraLayer))
