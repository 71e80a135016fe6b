"""Measure the checkpoints of the method's authors on data sets of the Hub, as adapters.

Why: the conversion is checked against golden numbers of the authors' code on a tiny model. Whether the published
checkpoints classify as published, only a run of this can show.

    python examples/verify_reference.py
    python examples/verify_reference.py --checkpoint smat.pt --backbone facebook/dino-vits16 --episodes 100

It needs the network for the checkpoints (about 1 GB for a ViT-S, four times that for a ViT-B), their backbones and the
data sets, of which Food-101 is the largest; and a GPU, or patience. Without --checkpoint it takes every repository
szcjerry/smat-vit-* whose backbone is known here.

Without fine-tuning, images of 128 pixels: episodes of CIFAR and MNIST with Meta-Dataset's variable ways and shots, of
Food-101 and Pets 5-way 5-shot (docs/protocols.md). For each data set the accuracy of the backbone and of the adapter
with 95 % intervals, and their difference on the same episodes. The published figures are not here to stand beside
them: they are in the paper (arXiv:2403.08477), for other episodes.

A checkpoint without the router's keys and skill tokens stops with the reason; see --router_file and --mix_evenly.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import HfApi

from smat_peft import evaluate, load_reference_checkpoint
from smat_peft.commands.arguments import DataArguments
from smat_peft.commands.console import HelpFormatter, run_command
from smat_peft.commands.protocol import load_protocol
from smat_peft.episodes import load_image_transform
from smat_peft.errors import CheckpointError, ConfigurationError
from smat_peft.evaluation import format_report
from smat_peft.sharing.reference_files import read_router_file

AUTHOR, PREFIX = "szcjerry", "smat-vit"
BACKBONES = {"dino-small": "facebook/dino-vits16", "dino-base": "facebook/dino-vitb16"}  # METHOD 1, by a name's end
DOMAINS = (  # as in recipes/meta_dataset.yaml
    "hub:uoft-cs/cifar10@test?name=cifar10",
    "hub:uoft-cs/cifar100@test?label=fine_label&name=cifar100",
    "hub:ylecun/mnist@test?name=mnist",
    "hub:ethz/food101@validation?name=food&ways=5&shots=5&queries=15",
    "hub:timm/oxford-iiit-pet@test?label=label&name=pet&ways=5&shots=5&queries=15",
)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--checkpoint", help="file, folder or repository; all of the authors' by default")
    parser.add_argument("--backbone", help="the ViT that --checkpoint was meta-tuned from")
    parser.add_argument("--domains", nargs="+", default=DOMAINS, help="what to measure on, as for meta-tuning")
    parser.add_argument("--episodes", type=int, default=600, help="episodes of each data set")
    parser.add_argument("--image_size", type=int, default=128, help="height and width of images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the episodes")
    parser.add_argument("--router_file", type=Path, help="file with the keys and skill tokens that checkpoints lack")
    parser.add_argument("--mix_evenly", action="store_true", help="mix the experts evenly instead of routing")
    return parser.parse_args(argv)


def published_checkpoints() -> dict[str, str]:
    """The authors' repositories with the backbone of each, as far as it is known."""
    found = {}
    for model in HfApi().list_models(author=AUTHOR, search=PREFIX):
        backbone = next((name for end, name in BACKBONES.items() if model.id.endswith(end)), None)
        if backbone is None:
            print(f"{model.id}: its backbone is not known here; name both with --checkpoint and --backbone")
        else:
            found[model.id] = backbone
    return found


def verify(argv: Sequence[str]) -> None:
    arguments = parse_arguments(argv)
    if (arguments.checkpoint is None) != (arguments.backbone is None):
        raise ConfigurationError("--checkpoint and --backbone belong together: give both of them or none")
    named = {arguments.checkpoint: arguments.backbone} if arguments.checkpoint else published_checkpoints()
    domains = load_protocol(DataArguments(train_domains=[], ood_domains=list(arguments.domains)))
    failed = []
    for checkpoint, backbone in named.items():
        try:
            model = load_reference_checkpoint(
                checkpoint,
                backbone,
                router_tensors=read_router_file(arguments.router_file) if arguments.router_file else None,
                mix_evenly=arguments.mix_evenly,
            )
        except CheckpointError as error:
            failed.append(str(error))
            continue
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        transform = load_image_transform(backbone, arguments.image_size)
        measured = evaluate(model, domains, transform=transform, episodes=arguments.episodes, seed=arguments.seed)
        print(f"{checkpoint} on {backbone}\n{format_report(measured)}\n")
    if failed:
        raise CheckpointError("\n".join(failed))


if __name__ == "__main__":
    raise SystemExit(run_command(verify, sys.argv[1:]))
