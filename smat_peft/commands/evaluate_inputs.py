"""What evaluate and analyse measure: models, predictors and domains, from their arguments."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import nn

from smat_peft.assets import DEMO_BACKBONE
from smat_peft.commands.arguments import DATA_ROOT, DOMAIN_KINDS, DataArguments
from smat_peft.commands.protocol import load_protocol, with_enough_classes
from smat_peft.episodes.domain import Domain
from smat_peft.episodes.fixed import FixedEpisodes
from smat_peft.errors import ConfigurationError, DataError
from smat_peft.evaluation.predictors import (
    BACKBONE,
    OTHER_DOMAIN,
    SMAT,
    Predictor,
    default_predictors,
    mean_expert_weights,
    other_domain_predictor,
    prototype_predictor,
)
from smat_peft.evaluation.protocol import EvaluationDomain
from smat_peft.few_shot.loading import backbone_name, load_backbone, load_model
from smat_peft.files import sha256_of
from smat_peft.tuner.adapters import has_experts

HELP_WIDTH = 100


def add_domain_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Which domains, and whether to look at those of a final comparison: the arguments of [`load_measured_domains`]."""
    kinds = textwrap.fill(f"Without any, {DEMO_BACKBONE} takes the built-in ones. {DOMAIN_KINDS}", HELP_WIDTH)
    group = parser.add_argument_group("domains", kinds)
    for name, text in (
        ("id_domains", "domains that the adapter was trained on"),
        ("dev_ood_domains", "domains not trained on, to look at while choosing settings"),
        ("ood_domains", "domains not trained on, for the final comparison"),
    ):
        group.add_argument(f"--{name}", nargs="+", default=[], metavar="DOMAIN", help=text)
    group.add_argument("--look_at_test", action="store_true", help="take test classes and built-in test-OOD domains")
    group.add_argument("--data_root", default="data", help=f"what {DATA_ROOT} in the names of domains stands for")
    group.add_argument(
        "--on_bad_image", choices=("error", "skip"), default="error", help="what to do with an unreadable image"
    )
    group.add_argument("--image_size", type=int, help="height and width of images in place of the image processor's")
    return group


def backbone_of_adapters(adapters: Sequence[str]) -> str:
    """The backbone that the adapters were made for; the packaged one where there are none.

    Raises:
        CheckpointError: An adapter's configuration cannot be read, or does not say.
        ConfigurationError: They are of different ones.
    """
    names = {adapter: backbone_name(adapter) for adapter in adapters}
    if len(set(names.values())) > 1:
        listed = ", ".join(f"{adapter}: {name}" for adapter, name in names.items())
        raise ConfigurationError(f"the adapters are of different backbones ({listed}); evaluate them one by one")
    return next(iter(names.values()), DEMO_BACKBONE)


def load_models(backbone: str, adapters: Sequence[str], device: torch.device) -> dict[str, nn.Module]:
    """The backbone, and each adapter on it by its folder's name; one of SMAT that is alone is called SMAT.

    Where such names would not be clear, paths are names.
    """
    models = {BACKBONE: load_backbone(backbone)}
    folders = [Path(adapter).name for adapter in adapters]
    is_clear = len({BACKBONE, SMAT, *folders}) == 2 + len(adapters)
    names = folders if is_clear else [adapter if "/" in adapter else f"./{adapter}" for adapter in adapters]
    for name, adapter in zip(names, adapters, strict=True):
        model = load_model(backbone, adapter)
        models[SMAT if len(adapters) == 1 and has_experts(model) else name] = model
    return {name: model.to(device) for name, model in models.items()}


def adapter_digest(adapter: str) -> str:
    """Tells apart adapters that have lain in one folder."""
    weights = Path(adapter) / SAFETENSORS_WEIGHTS_NAME
    return sha256_of(weights) if weights.is_file() else adapter


def predictors_of(
    models: dict[str, nn.Module], validation: FixedEpisodes, kind: str, batch_size: int
) -> dict[str, Predictor]:
    """The backbone and each adapter; for SMAT alone, by prototypes, other mixes of its experts as well."""
    if models.keys() != {BACKBONE, SMAT} or kind != "prototype":
        return {name: prototype_predictor(model, batch_size=batch_size) for name, model in models.items()}
    model = models[SMAT]
    mean = mean_expert_weights(model, validation, batch_size=batch_size) if len(validation) else None
    predictors = default_predictors(model, mean_experts=mean, batch_size=batch_size)
    if len(validation) and len(validation.samplers) > 1:
        predictors[OTHER_DOMAIN] = other_domain_predictor(model, validation, batch_size=batch_size)
    return predictors


def load_measured_domains(arguments: argparse.Namespace, backbone: str) -> tuple[list[EvaluationDomain], list[Domain]]:
    """The domains to measure on, and those whose validation classes may be used to fit on.

    Test classes of the ID domains, and test-OOD domains, are taken only where the arguments ask for them. Domains
    without enough classes for an episode are left out.

    Raises:
        DataError: No domain is left, or one cannot be read.
    """
    data = DataArguments(
        train_domains=arguments.id_domains,
        dev_ood_domains=arguments.dev_ood_domains,
        ood_domains=arguments.ood_domains,
        data_root=arguments.data_root,
        on_bad_image=arguments.on_bad_image,
        evaluation_ways=arguments.ways,
        evaluation_shots=arguments.shots,
        queries=arguments.queries,
    )
    if backbone == DEMO_BACKBONE and not (data.train_domains or data.dev_ood_domains or data.ood_domains):
        data = replace(data, train_domains=["builtin:id"], dev_ood_domains=["builtin:dev_ood"])
        data = replace(data, ood_domains=["builtin:test_ood"] if arguments.look_at_test else [])
    entries = load_protocol(data)
    if not looks_at_test(arguments):
        entries = [
            entry._replace(split="validation") if entry.role == "id" else entry
            for entry in entries
            if entry.role != "test_ood"
        ]
    entries = with_enough_classes(entries)
    if not entries:
        raise DataError(
            "there is nothing to evaluate on; name domains with enough classes for an episode (--id_domains, "
            "--dev_ood_domains, --ood_domains), or add --look_at_test for the ID domains' test classes"
        )
    if arguments.validation_domains:
        named = replace(data, train_domains=arguments.validation_domains, dev_ood_domains=[], ood_domains=[])
        return entries, [entry.domain for entry in load_protocol(named)]
    return entries, [entry.domain for entry in entries if entry.role == "id"]


def looks_at_test(arguments: argparse.Namespace) -> bool:
    """Whether the arguments ask for what a final comparison is made on."""
    return arguments.look_at_test or bool(arguments.ood_domains)
