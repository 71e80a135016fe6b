"""How much memory meta-tuning takes, by backbone, experts and gates, and which settings fit which device.

    python benchmarks/fits.py
    python benchmarks/fits.py --processes 4

What is told is what `--dry_run` tells for a run at hand: an update of 4 episodes of 100 images of 224 x 224, 32 bits.
Backbones are of random weights. What a pass of an image keeps is tried; the rest is counted. benchmarks/memory.py has
how near it comes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import product

import torch
from peft import get_peft_model
from transformers import ViTConfig, ViTModel

from smat_peft import MetaTuningArguments, SMATConfig
from smat_peft.commands.console import HelpFormatter
from smat_peft.evaluation.tables import render_table
from smat_peft.meta_tuning.learner import MetaLearner
from smat_peft.meta_tuning.memory import kept_for_backward, memory_of_update
from smat_peft.meta_tuning.optimisers import ParameterGroups

# width, layers, heads, width of the MLP, pixels of a patch: Dosovitskiy et al. 2021, table 1; Zhai et al. 2022, table 2
BACKBONES = {
    "ViT-B/16": (768, 12, 12, 3072, 16),
    "ViT-L/14": (1024, 24, 16, 4096, 14),
    "ViT-g/14, 1.0 B": (1408, 40, 16, 6144, 14),
}
EXPERTS = (8, 16)
GATES = ("element", "structured")
CHUNK = 16  # images
DEVICES = (16, 24, 40, 80)  # GB of common accelerators
ROOM = 0.75  # of a device: libraries, kernels and fragments take the rest


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--images", type=int, default=100, help="Support and query images of an episode.")
    parser.add_argument("--processes", type=int, choices=(1, 2, 4), default=1, help="That share the 4 episodes.")
    parser.add_argument("--backbones", nargs="+", choices=list(BACKBONES), default=list(BACKBONES))
    arguments = parser.parse_args(argv)
    titles = ["backbone", "experts", "gates", "adapter", "images whole", "device"]
    titles += [f"--max_batch_size {CHUNK}", "device"]
    rows = [row for name in arguments.backbones for row in rows_of(name, arguments)]
    print(render_table(titles, rows, "<><>>>>>", "markdown"))


def rows_of(name: str, arguments: argparse.Namespace) -> Iterator[list[str]]:
    """The rows of a backbone."""
    config = vit_config(name)
    kept = kept_by_backbone(config)
    for gates, experts in product(GATES, EXPERTS):
        learner = make_learner(config, experts, gates)
        row = [name, str(experts), gates]
        for chunk in (None, CHUNK):
            learner.arguments.max_batch_size = chunk
            groups, count = ParameterGroups(learner), arguments.images
            parts = memory_of_update(learner, groups, processes=arguments.processes, count=count, kept=kept)
            total = sum(parts.values()) / 1e9
            device = next((f"{device} GB" for device in DEVICES if total <= ROOM * device), "none")
            row += [] if chunk else [f"{parts['adapter'] / 1e9:.1f} GB"]
            row += [f"{total:.1f} GB", device]
        yield row


def kept_by_backbone(config: ViTConfig) -> int:
    """Bytes that a pass of one image keeps."""
    model = ViTModel(config, add_pooling_layer=False).eval()
    image = torch.zeros(1, 3, config.image_size, config.image_size)
    return kept_for_backward(lambda: model(image).last_hidden_state, model.parameters())


def make_learner(config: ViTConfig, experts: int, gates: str) -> MetaLearner:
    """What is trained, as shapes without values."""
    with torch.device("meta"):
        backbone = ViTModel(config, add_pooling_layer=False)
        model = get_peft_model(backbone, SMATConfig(num_experts=experts, gate_granularity=gates))
        return MetaLearner(model, MetaTuningArguments())


def vit_config(name: str) -> ViTConfig:
    """The configuration of a backbone by its name."""
    width, layers, heads, inner, patch = BACKBONES[name]
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        patch_size=patch,
        image_size=224,
    )


if __name__ == "__main__":
    main()
