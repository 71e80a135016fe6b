"""Parts of a backbone that people choose by hand to fine-tune, by name: what learned gates are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from smat_peft.errors import ConfigurationError
from smat_peft.tuner.features import UNUSED_IN_FEATURES
from smat_peft.tuner.targets import base_modules, heads_of, own_parameters, tied_parameters

ATTENTION = ("attention", "attn")
EMBEDDING = ("embed",)


class OwnedParameter(NamedTuple):
    """A parameter of a backbone: its full name, the module that owns it, and itself."""

    name: str
    owner: nn.Module
    parameter: nn.Parameter


@dataclass(frozen=True)
class Subset:
    """Which parameters; `choose` is given them in the backbone's order, and the share of scalars that is wanted."""

    about: str
    choose: Callable[[list[OwnedParameter], float], list[OwnedParameter]]

    def __call__(self, backbone: nn.Module, feature: str, share: float) -> list[str]:
        """Names of the parameters, for `SMATConfig(target_parameters=...)`.

        Raises:
            ConfigurationError: The backbone has none of this kind.
        """
        chosen = self.choose(adaptable(backbone, feature), share)
        if not chosen:
            raise ConfigurationError(f"{type(backbone).__name__} has no parameters of this kind: {self.about}")
        return [part.name for part in chosen]


def adaptable(backbone: nn.Module, feature: str) -> list[OwnedParameter]:
    """The parameters that an adapter of the whole backbone has a delta for, in their order."""
    heads, tied = tuple(f"{path}." for path in heads_of(backbone, feature)), tied_parameters(backbone)
    return [
        OwnedParameter(full_name, owner, parameter)
        for path, owner in base_modules(backbone)
        for name in own_parameters(owner)
        if not (full_name := f"{path}.{name}" if path else name).startswith(heads)
        and name not in UNUSED_IN_FEATURES
        and (parameter := owner.get_parameter(name)) not in tied
    ]


def share_of_parameters(backbone: nn.Module, feature: str, names: Iterable[str]) -> float:
    """How many of the scalars that could be adapted are in the parameters of these names, 0 to 1."""
    chosen, parts = set(names), adaptable(backbone, feature)
    return _size(part for part in parts if part.name in chosen) / _size(parts)


def _size(parts: Iterable[OwnedParameter]) -> int:
    return sum(part.parameter.numel() for part in parts)


def _is_in(part: OwnedParameter, words: tuple[str, ...]) -> bool:
    return any(word in part.name for word in words)


def _attention(parts: list[OwnedParameter], share: float) -> list[OwnedParameter]:
    return [part for part in parts if _is_in(part, ATTENTION) and "Norm" not in type(part.owner).__name__]


def _mlp(parts: list[OwnedParameter], share: float) -> list[OwnedParameter]:
    others = [part for part in parts if not _is_in(part, ATTENTION) and not _is_in(part, EMBEDDING)]
    return [part for part in others if isinstance(part.owner, nn.Linear)]


def _norms(parts: list[OwnedParameter], share: float) -> list[OwnedParameter]:
    return [part for part in parts if "Norm" in type(part.owner).__name__]


def _biases(parts: list[OwnedParameter], share: float) -> list[OwnedParameter]:
    return [part for part in parts if part.name.endswith("bias")]


def _first(parts: list[OwnedParameter], share: float) -> list[OwnedParameter]:
    wanted, chosen = share * _size(parts), list[OwnedParameter]()
    for part in parts:
        if _size(chosen) >= wanted:
            break
        chosen.append(part)
    return chosen


def _last(parts: list[OwnedParameter], share: float) -> list[OwnedParameter]:
    return _first(parts[::-1], share)


SUBSETS: dict[str, Subset] = {
    "attention": Subset("attention", _attention),
    "mlp": Subset("the linear layers outside attention", _mlp),
    "first-layers": Subset("the parameters nearest to the image", _first),
    "last-layers": Subset("the parameters nearest to the feature", _last),
    "norms": Subset("the normalisation layers", _norms),
    "biases": Subset("the biases", _biases),
}
