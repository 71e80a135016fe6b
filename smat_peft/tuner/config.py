"""SMATConfig: the settings of an adapter, saved beside its weights."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft import PeftConfig

from smat_peft.errors import ConfigurationError
from smat_peft.experts.patterns import PATTERNS
from smat_peft.kinds import is_number, is_whole
from smat_peft.tuner.packed import check_header


class SMATPeftType(str, enum.Enum):  # noqa: UP042 - PEFT splits str(member) at the dot
    """SMAT's member of what PEFT keys its methods by; PEFT's own enumeration is closed to packages outside it."""

    SMAT = "SMAT"


WHOLE = ("num_experts", "router_heads", "router_skill_tokens", "router_temperature_episodes")  # numbers
NUMBERS = ("target_sparsity", "gate_init_std", "router_mlp_ratio")


@dataclass
class SMATConfig(PeftConfig):
    """Configuration of sparse interpolated experts (SMAT, arXiv 2403.08477).

    With no target named, every parameter of the backbone is adapted: weights, biases, norms, convolutions, embeddings
    and bare parameters such as the class token. Classification heads are left alone.

    Args:
        num_experts: Number of experts M: gates over the one shared delta.
        target_sparsity: Share of each expert's gates that training closes.
        sparsity_pattern: `"learned"` gates, or a fixed pattern: `"dense"`, `"random"`, `"magnitude"`.
        gate_granularity: A gate per `"element"`, or `"structured"`: per input column of a matrix, per output channel of
            a convolution, per element of vectors.
        gate_init_std: Standard deviation of the initial gate logits.
        gate_eval: Gates used in evaluation: the `"reference"`'s, which are denser than those trained, or the very gates
            that were trained (`"train"`).
        router_pooling: Task embedding: the `"mean"` over classes, or the `"first"` class (the reference's, which
            depends on how classes are numbered).
        router_heads: Attention heads of the router's block; where they do not divide the feature width, the largest
            smaller number that does.
        router_mlp_ratio: Hidden width of its MLP over the feature width.
        router_skill_tokens: Learned tokens beside the class prototypes.
        router_spectral_norm: Spectral norm of its linear weights.
        router_temperature: First and last temperature.
        router_temperature_episodes: Training episodes between them.
        feature: Feature of an image: `"cls"` token, `"mean"` over positions, `"pooler"` output, the path of a module
            whose output it is, or `"auto"` by the kind of backbone. Also `"reference_cls"`: a ViT's class token, its
            position embeddings interpolated as the reference does it.
        feature_dim: Width of the feature; read from the model's config where not given. Where it is not to be found
            there is no router and experts are mixed evenly.
        target_modules: Modules to adapt: a regular expression, names or their endings, or `"all-linear"`.
        target_parameters: Parameters to adapt, by name or its ending.
        exclude_modules: Modules to leave alone.
        layers_to_transform: Indices of the layers to adapt.
        layers_pattern: Name of the list those layers are in.
        modules_to_save: Modules trained and saved whole beside the adapter.
        init_weights: Start from a zero delta, which changes nothing. `False` draws a random one, for tests.
        packed: Header of an adapter in packed form, as [`pack_adapter`] writes it; `None` where the adapter can be
            trained.

    Example:
        ```py
        >>> from peft import get_peft_model
        >>> from transformers import ViTConfig, ViTModel
        >>> from smat_peft import SMATConfig

        >>> backbone = ViTModel(ViTConfig(), add_pooling_layer=False)
        >>> model = get_peft_model(backbone, SMATConfig(num_experts=4, target_sparsity=0.9))
        ```
    """

    num_experts: int = 8
    target_sparsity: float = 0.9
    sparsity_pattern: str = "learned"
    gate_granularity: str = "element"
    gate_init_std: float = 0.5
    gate_eval: str = "reference"
    router_pooling: str = "mean"
    router_heads: int = 4
    router_mlp_ratio: float = 2.0
    router_skill_tokens: int = 4
    router_spectral_norm: bool = True
    router_temperature: tuple[float, float] = (5.0, 0.5)
    router_temperature_episodes: int = 18_000
    feature: str = "auto"
    feature_dim: int | None = None
    target_modules: str | list[str] | set[str] | None = None
    target_parameters: list[str] | None = None
    exclude_modules: str | list[str] | set[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    init_weights: bool = True
    packed: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = SMATPeftType.SMAT
        if self.packed is not None:
            check_header(self.packed)
        self._check_types()
        start, end = map(float, self.router_temperature)
        self.router_temperature = (start, end)
        for name in WHOLE:  # numbers of NumPy could not be saved
            setattr(self, name, int(getattr(self, name)))
        for name in NUMBERS:
            setattr(self, name, float(getattr(self, name)))
        self.feature_dim = None if self.feature_dim is None else int(self.feature_dim)
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))
        if isinstance(self.target_modules, str):
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None:
                    raise ConfigurationError(f"`{name}` needs `target_modules` to be a list of names, not a string")

        self._require(self.num_experts >= 1, "num_experts", "at least 1")
        self._require(0 <= self.target_sparsity < 1, "target_sparsity", "in [0, 1)")
        self._require_choice("sparsity_pattern", ("learned", *PATTERNS))
        self._require_choice("gate_granularity", ("element", "structured"))
        self._require(0 <= self.gate_init_std < math.inf, "gate_init_std", "at least 0 and finite")
        self._require_choice("gate_eval", ("reference", "train"))
        self._require_choice("router_pooling", ("mean", "first"))
        self._require(self.router_heads >= 1, "router_heads", "at least 1")
        self._require(0 < self.router_mlp_ratio < math.inf, "router_mlp_ratio", "above 0 and finite")
        self._require(self.router_skill_tokens >= 0, "router_skill_tokens", "at least 0")
        self._require(math.inf > start >= end > 0, "router_temperature", "(start, end), finite, with start >= end > 0")
        self._require(self.router_temperature_episodes >= 1, "router_temperature_episodes", "at least 1")
        self._require(self.feature_dim is None or self.feature_dim >= 1, "feature_dim", "at least 1, or None")

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON gives it back: a list for a tuple."""
        return super().to_dict() | {"router_temperature": list(self.router_temperature)}

    @property
    def has_router(self) -> bool:
        """Whether expert weights depend on the task: not where the feature's width is unknown or all gates are open."""
        return self.feature_dim is not None and self.sparsity_pattern != "dense"

    def _check_types(self) -> None:
        for name in WHOLE:
            self._require(is_whole(getattr(self, name)), name, "a whole number")
        self._require(self.feature_dim is None or is_whole(self.feature_dim), "feature_dim", "a whole number, or None")
        for name in NUMBERS:
            self._require(is_number(getattr(self, name)), name, "a number")
        self._require(isinstance(self.init_weights, bool), "init_weights", "True or False")
        self._require(isinstance(self.feature, str), "feature", "the name of a feature")
        pair = self.router_temperature
        is_pair = isinstance(pair, Sequence) and len(pair) == 2 and all(map(is_number, pair))
        self._require(is_pair, "router_temperature", "two numbers, the first and the last temperature")

    def _require(self, holds: bool, name: str, wanted: str) -> None:
        if not holds:
            raise ConfigurationError(f"SMATConfig: {name} must be {wanted}, got {getattr(self, name)!r}")

    def _require_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value: Any = getattr(self, name)
        self._require(value in choices, name, "one of " + ", ".join(choices))
