"""Pre-train the small vision transformer that the demo meta-tunes.

The demo must run offline within minutes, so its backbone is 32 pixels wide and trained here rather than downloaded: to name the classes
of the built-in suite's pre-training domains (Latin letters, symbols, ancient scripts, shapes, banners, patterns), none of
which occurs in a domain that is meta-tuned on or evaluated on. The head is a cosine classifier, since SMAT classifies by the cosine
to class prototypes; it is thrown away. What stays is an ordinary `ViTModel` folder with image processor and card.

    python examples/pretrain_backbone.py --output_dir outputs/demo-vit               # the demo's: 10 minutes on 2 cores
    python examples/pretrain_backbone.py --output_dir outputs/tiny-vit --steps 20 --episodes 2    # to see it work
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel, set_seed

from smat_peft.episodes.builtin import ROLES, load_builtin, load_pretraining
from smat_peft.episodes.builtin.lazy import SIDE
from smat_peft.episodes.images import ImageTransform
from smat_peft.evaluation.protocol import EvaluationDomain, evaluate
from smat_peft.evaluation.report import format_report

COSINE_SCALE = 20.0
WARM_UP = 0.05  # of the run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pre-train the demo's backbone.")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--weight_decay", type=float, default=0.05)
    parser.add_argument("--label_smoothing", type=float, default=0.1)
    parser.add_argument("--episodes", type=int, default=50, help="evaluation episodes of each domain")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def render_classes() -> tuple[Tensor, Tensor]:
    """All images of the pre-training classes, `[N, 3, 32, 32]` bytes, and their labels, `[N]`."""
    classes = [images for domain in load_pretraining() for images in domain.class_images.values()]
    pixels = [
        np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)
        for images in tqdm(classes, desc="drawing", unit="class")
    ]
    labels = [torch.full((len(images),), label) for label, images in enumerate(classes)]
    return torch.from_numpy(np.concatenate(pixels)), torch.cat(labels)


def augment(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Turn, resize, stretch and move images `[N, 3, H, W]` of -1..1, change their brightness, contrast and colour; all by `strength`."""

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


def learning_rate_factor(step: int, steps: int) -> float:
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def pretrain(model: ViTModel, arguments: argparse.Namespace) -> None:
    """Train `model` in place."""
    pixels, labels = render_classes()
    head = nn.Parameter(torch.randn(int(labels.max()) + 1, model.config.hidden_size))
    optimizer = torch.optim.AdamW(
        [*model.parameters(), head], lr=arguments.learning_rate, weight_decay=arguments.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, arguments.steps))
    generator = torch.Generator().manual_seed(arguments.seed)
    model.train()
    with tqdm(range(arguments.steps), desc="pre-training", unit="step") as bar:
        for step in bar:
            chosen = torch.randint(len(labels), (arguments.batch_size,), generator=generator)
            images = augment(pixels[chosen].float() / 127.5 - 1, generator)
            features = model(images).last_hidden_state[:, 0]
            logits = COSINE_SCALE * F.normalize(features, dim=1) @ F.normalize(head, dim=1).T
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=arguments.label_smoothing)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if step % 20 == 0:
                accuracy = (logits.argmax(1) == labels[chosen]).float().mean()
                bar.set_postfix(loss=f"{loss.item():.2f}", accuracy=f"{accuracy.item():.2f}")
    model.eval()


def main() -> None:
    arguments = parse_arguments()
    set_seed(arguments.seed)
    model = ViTModel(
        ViTConfig(
            image_size=SIDE,
            patch_size=8,
            hidden_size=128,
            num_hidden_layers=6,
            num_attention_heads=4,
            intermediate_size=512,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )
    pretrain(model, arguments)
    model.save_pretrained(arguments.output_dir)
    processor = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor.save_pretrained(arguments.output_dir)
    domains = [
        EvaluationDomain(role, load_builtin(name), "test" if role == "id" else "all")
        for role, names in ROLES.items()
        for name in names
    ]
    evaluation = evaluate(model, domains, transform=ImageTransform((SIDE, SIDE)), episodes=arguments.episodes)
    print(format_report(evaluation))


if __name__ == "__main__":
    main()
