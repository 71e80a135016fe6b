"""What an analysis is made on: domains, and episodes of them."""

from __future__ import annotations

import argparse
from typing import Any

from torch import nn

from smat_peft.assets import DEMO_BACKBONE
from smat_peft.commands.checks import check_image_size
from smat_peft.episodes.cache import DEFAULT_MEBIBYTES, ImageCache
from smat_peft.episodes.domains import load_domains
from smat_peft.episodes.fixed import FixedEpisodes
from smat_peft.episodes.images import load_image_transform
from smat_peft.episodes.sampling import can_serve
from smat_peft.errors import ConfigurationError, DataError
from smat_peft.evaluation.protocol import EvaluationDomain, domain_seed
from smat_peft.evaluation.records import Role
from smat_peft.evaluation.selection_measuring import DomainEpisodes

DOMAIN_ARGUMENTS: dict[Role, str] = {"id": "train_domains", "dev_ood": "dev_ood_domains", "test_ood": "ood_domains"}


class Material:
    """Domains by the command's arguments, their episodes, and how to measure on them.

    Args:
        arguments: Of the command.
        backbone: Name of the backbone.
        model: It, to see whether it takes the images.
    """

    def __init__(self, arguments: argparse.Namespace, backbone: str, model: nn.Module) -> None:
        self.domains = _load_domains(arguments, backbone)
        self._seed = arguments.seed
        self._shared: dict[str, Any] = {
            "transform": load_image_transform(backbone, arguments.image_size),
            "cache": ImageCache(DEFAULT_MEBIBYTES),
            "ways": arguments.ways,
            "shots": arguments.shots,
            "queries": arguments.queries,
        }
        check_image_size(model, self._shared["transform"], backbone)

    def settings(self, episodes: int) -> dict[str, Any]:
        """How [`evaluate`] is to measure on so many episodes of each domain."""
        return {"episodes": episodes, "seed": self._seed} | self._shared

    def episodes(self, count: int) -> list[DomainEpisodes]:
        """So many episodes of each domain."""
        return [
            DomainEpisodes(
                entry.domain.name,
                entry.role,
                FixedEpisodes(
                    [entry.domain],
                    entry.split,
                    count,
                    seed=domain_seed(self._seed, entry.domain.name),
                    augment=False,
                    **self._shared,
                ),
            )
            for entry in self.domains
        ]


def _load_domains(arguments: argparse.Namespace, backbone: str) -> list[EvaluationDomain]:
    """The domains with enough classes for an episode: validation classes of those trained on, all of the others."""
    specs: dict[Role, list[str]] = {role: getattr(arguments, name) for role, name in DOMAIN_ARGUMENTS.items()}
    if not specs["id"] and not specs["dev_ood"]:
        if backbone != DEMO_BACKBONE:
            raise ConfigurationError("name the domains to draw tasks from: --train_domains, --dev_ood_domains")
        specs |= {"id": ["builtin:id"], "dev_ood": ["builtin:dev_ood"]}
    entries = [
        EvaluationDomain(role, domain, "validation" if role == "id" else "all")
        for role, named in specs.items()
        for domain in load_domains(named)
    ]
    names = [entry.domain.name for entry in entries]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"domains named in more than one role: {', '.join(repeated)}; keep each in one")
    usable = [entry for entry in entries if can_serve(entry.domain, entry.split, arguments.ways)]
    for entry in entries:
        if entry not in usable:
            count = len(entry.domain.classes(entry.split))
            print(f"{entry.domain.name}: left out, {count} classes are too few for an episode")
    if len(usable) < 2:
        raise DataError(f"at least two domains must have classes for an episode of {arguments.ways} ways")
    return usable
