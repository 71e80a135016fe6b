"""Pre-train the small vision transformer that the demo meta-tunes.

The demo runs offline and within minutes, so its backbone is a ViT for 32 x 32 pixels that is trained here: to tell the
classes of the built-in suite's pre-training domains apart (Latin letters, symbols, ancient scripts, shapes, banners,
patterns). None of them occurs in a domain to meta-tune on or to evaluate on. The head is a cosine classifier, because
SMAT classifies by the cosine to class prototypes; it is thrown away. What stays is an ordinary folder of a `ViTModel`
with image processor and card.

Training is short on purpose: a backbone that knows all there is to know about characters leaves nothing to meta-tune.

The demo's own, 8 minutes on 2 cores of which 2 are for measuring, and a short one to see it work:

    python examples/pretrain_backbone.py --output_dir outputs/demo-vit
    python examples/pretrain_backbone.py --output_dir outputs/tiny-vit --steps 20 --episodes 2
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel, set_seed

from smat_peft.episodes.builtin import ROLES, load_builtin, load_pretraining
from smat_peft.episodes.builtin.lazy import SIDE
from smat_peft.episodes.images import ImageTransform
from smat_peft.evaluation.protocol import EvaluationDomain, evaluate
from smat_peft.evaluation.records import ROLE_TITLES
from smat_peft.evaluation.report import format_report
from smat_peft.meta_tuning.schedules import warmup_cosine

COSINE_SCALE = 16.0
WARM_UP = 0.05  # of the run
HEAD_RATE = 3.0  # the head's learning rate, in units of the backbone's

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-feature-extraction
tags: [vision, vit]
---
# demo-vit: the backbone of the SMAT demo

A vision transformer of {parameters:,} parameters for images of {side} x {side} pixels (patches of {patch} x {patch},
{layers} layers, width {width}). It is made for the demo of [smat_peft](https://arxiv.org/abs/2403.08477) and of no use
for photographs.

It was pre-trained without any downloaded image: with labels, on {classes:,} drawn classes ({images:,} images: Latin
letters, symbols, ancient scripts, coloured shapes, banners, patterns), for {steps:,} steps of {batch_size} images with
seed {seed}:

    {command}

## How good its features are

Cosine to class prototypes, no fine-tuning, on classes that it was not trained on; variable ways and shots as in
Meta-Dataset. ID domains: their test classes. OOD domains: all classes.

{table}
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pre-train the demo's backbone and measure it.")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--weight_decay", type=float, default=0.05)
    parser.add_argument("--episodes", type=int, default=100, help="evaluation episodes of each domain")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_backbone() -> ViTModel:
    config = ViTConfig(
        image_size=SIDE,
        patch_size=8,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=512,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.08,  # the usual 0.02 suits widths near 768; here it costs hundreds of idle steps
    )
    return ViTModel(config, add_pooling_layer=False)


def draw_classes() -> tuple[Tensor, Tensor]:
    """All images of the pre-training classes, `[N, 3, 32, 32]` bytes, and their labels, `[N]`."""
    classes = [images for domain in load_pretraining() for images in domain.class_images.values()]
    pixels = [np.asarray(image) for images in tqdm(classes, desc="drawing", unit="class") for image in images]
    labels = [label for label, images in enumerate(classes) for _ in images]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def augment(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Turn, resize, stretch and move images `[N, 3, H, W]` of -1..1, and change brightness, contrast and colour."""

    def around(middle: float, spread: float, *shape: int) -> Tensor:
        return middle + strength * spread * (2 * torch.rand(len(images), *shape, generator=generator) - 1)

    angle, scale, stretch = around(0, 0.2), around(1, 0.17), around(1, 0.1)
    rows = (
        torch.stack([angle.cos() * scale, -angle.sin() * scale, around(0, 0.1)], dim=1),
        torch.stack([angle.sin() * scale * stretch, angle.cos() * scale * stretch, around(0, 0.1)], dim=1),
    )
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return (moved * around(1, 0.3, 1, 1, 1) * around(1, 0.1, 3, 1, 1) + around(0, 0.2, 1, 1, 1)).clamp(-1, 1)


def pretrain(model: ViTModel, pixels: Tensor, labels: Tensor, arguments: argparse.Namespace) -> None:
    """Train `model` in place to name the classes of images."""
    head = nn.Parameter(0.05 * torch.randn(int(labels.max()) + 1, model.config.hidden_size))
    optimizer = torch.optim.AdamW(
        [
            {"params": list(model.parameters()), "lr": arguments.learning_rate},
            {"params": [head], "lr": HEAD_RATE * arguments.learning_rate, "weight_decay": 0.0},
        ],
        weight_decay=arguments.weight_decay,
    )
    end = arguments.steps + 1
    schedule = LambdaLR(optimizer, lambda step: warmup_cosine((step + 1) / end, WARM_UP, 1))
    generator = torch.Generator().manual_seed(arguments.seed)
    model.train()
    with tqdm(range(arguments.steps), desc="pre-training", unit="step") as bar:
        for step in bar:
            chosen = torch.randint(len(labels), (arguments.batch_size,), generator=generator)
            # Distortions grow over the run: with full ones from the start, training dwells on its first plateau.
            images = augment(pixels[chosen].float() / 127.5 - 1, step / arguments.steps, generator)
            features = model(images).last_hidden_state[:, 0]
            logits = COSINE_SCALE * F.normalize(features, dim=1) @ F.normalize(head, dim=1).T
            loss = F.cross_entropy(logits, labels[chosen])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if step % 20 == 0:
                accuracy = (logits.argmax(1) == labels[chosen]).float().mean().item()
                bar.set_postfix(loss=f"{loss.item():.2f}", accuracy=f"{accuracy:.2f}")
    model.eval()


def measure(model: ViTModel, episodes: int) -> str:
    """A table of prototype accuracies on the suite's domains."""
    domains = [
        EvaluationDomain(role, load_builtin(name), "test" if role == "id" else "all")
        for role in ROLE_TITLES
        for name in ROLES[role]
    ]
    evaluation = evaluate(model, domains, transform=ImageTransform((SIDE, SIDE)), episodes=episodes)
    return format_report(evaluation, style="markdown")


def main() -> None:
    arguments = parse_arguments()
    set_seed(arguments.seed)
    model = make_backbone()
    pixels, labels = draw_classes()
    pretrain(model, pixels, labels, arguments)
    model.save_pretrained(arguments.output_dir)
    processor = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor.save_pretrained(arguments.output_dir)

    table = measure(model, arguments.episodes)
    print(table)
    options = [f"--steps {arguments.steps}", f"--batch_size {arguments.batch_size}", f"--seed {arguments.seed}"]
    card = CARD.format(
        parameters=model.num_parameters(),
        side=SIDE,
        patch=model.config.patch_size,
        layers=model.config.num_hidden_layers,
        width=model.config.hidden_size,
        classes=int(labels.max()) + 1,
        images=len(labels),
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        command=" ".join(["python examples/pretrain_backbone.py --output_dir demo-vit", *options]),
        table=table,
    )
    (arguments.output_dir / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
