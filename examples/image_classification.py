"""Fine-tune an image classifier with SMAT, or LoRA beside it, with transformers' Trainer.

Why: outside few-shot learning, too, an adapter whose gates close most of a delta is a sparse alternative to other PEFT
methods. Nothing here is special to SMAT but the callback that holds the sparsity and the learning rate of the gates.

scikit-learn's digits and the packaged ViT, a minute on two CPU cores, without network:

    python examples/image_classification.py
    python examples/image_classification.py --method lora --learning_rate 1e-2

One's own images, a folder with a folder for each class, and a backbone of the Hub:

    python examples/image_classification.py --model_name_or_path facebook/dinov2-small --image_folder data/flowers

It ends with the accuracy on held-out images; the adapter with its classifier is in --output_dir.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments, set_seed

from smat_peft import SMATConfig
from smat_peft.assets import backbone_source
from smat_peft.commands.console import HelpFormatter
from smat_peft.episodes import ImageTransform, load_domain, load_image_transform
from smat_peft.meta_tuning.single_task import SparsityCallback, create_optimizer

HELD_OUT = 0.2  # of all images for validation, and as many for the test


class Images(Dataset[dict[str, Any]]):
    """Images with their labels, as a Trainer takes them."""

    def __init__(self, images: Sequence[Image.Image], labels: Sequence[int], transform: ImageTransform) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.transform.evaluation(self.images[index]), "labels": self.labels[index]}


def load_images(folder: Path | None) -> tuple[list[Image.Image], list[int], list[str]]:
    """Images, labels and class names: of a folder of class folders, or scikit-learn's digits."""
    if folder is None:
        digits = load_digits()
        scans = np.round(digits.images * (255 / 16)).astype(np.uint8)
        return [Image.fromarray(scan) for scan in scans], digits.target.tolist(), [str(n) for n in range(10)]
    domain = load_domain(f"folder:{folder}")
    names = domain.classes("all")
    pairs = [(image, label) for label, name in enumerate(names) for image in domain.images("all", name)]
    return [image for image, _ in pairs], [label for _, label in pairs], names


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model_name_or_path", default="demo-vit", help="a vision model of the Hub, or a folder")
    parser.add_argument("--image_folder", type=Path, help="folder of class folders; scikit-learn's digits by default")
    parser.add_argument("--output_dir", default="outputs/image_classification", help="folder for the adapter")
    parser.add_argument("--method", choices=("smat", "lora"), default="smat", help="adapter")
    parser.add_argument("--num_experts", type=int, default=1, help="experts of smat, which are mixed evenly here")
    parser.add_argument("--target_sparsity", type=float, default=0.9, help="share of smat's gates to close")
    parser.add_argument("--rank", type=int, default=8, help="rank of lora")
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="rate of the weights (AdamW)")
    parser.add_argument("--gate_learning_rate", type=float, default=0.1, help="rate of smat's gates (AdamW)")
    parser.add_argument("--max_steps", type=int, default=200, help="optimiser steps")
    parser.add_argument("--batch_size", type=int, default=64, help="images of a step")
    parser.add_argument("--seed", type=int, default=0, help="seed of the adapter and the batches, not of the split")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    set_seed(arguments.seed)
    images, labels, names = load_images(arguments.image_folder)
    numbers = np.arange(len(labels))
    rest, test = train_test_split(numbers, test_size=HELD_OUT, stratify=labels, random_state=0)
    held_out = HELD_OUT / (1 - HELD_OUT)
    train, validation = train_test_split(rest, test_size=held_out, stratify=np.array(labels)[rest], random_state=0)
    transform = load_image_transform(arguments.model_name_or_path)
    parts = {
        part: Images([images[i] for i in chosen], [labels[i] for i in chosen], transform)
        for part, chosen in (("train", train), ("validation", validation), ("test", test))
    }

    model = AutoModelForImageClassification.from_pretrained(
        backbone_source(arguments.model_name_or_path), num_labels=len(names), ignore_mismatched_sizes=True
    )
    is_smat = arguments.method == "smat"
    if is_smat:
        config = SMATConfig(
            num_experts=arguments.num_experts,
            target_sparsity=arguments.target_sparsity,
            modules_to_save=["classifier"],
        )
    else:
        config = LoraConfig(
            r=arguments.rank, lora_alpha=2 * arguments.rank, target_modules="all-linear", modules_to_save=["classifier"]
        )
    model = get_peft_model(model, config)
    model.print_trainable_parameters()

    if is_smat:
        optimizer = create_optimizer(model, lr=arguments.learning_rate, gate_lr=arguments.gate_learning_rate)
    else:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=arguments.learning_rate)
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=arguments.output_dir,
            max_steps=arguments.max_steps,
            per_device_train_batch_size=arguments.batch_size,
            per_device_eval_batch_size=arguments.batch_size,
            lr_scheduler_type="cosine",
            warmup_steps=arguments.max_steps // 10,
            logging_steps=max(1, arguments.max_steps // 10),
            save_strategy="no",
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to="none",
            seed=arguments.seed,
        ),
        train_dataset=parts["train"],
        optimizers=(optimizer, None),
        callbacks=[SparsityCallback()] if is_smat else None,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )
    trainer.train()
    trainer.save_model()
    for part in ("validation", "test"):
        figures = trainer.evaluate(parts[part])
        print(f"{part} accuracy {100 * figures['eval_accuracy']:.1f} % of {len(parts[part])} images")
    if is_smat:
        closed = model.eval().sparsity()
        print("share of closed gates, expert by expert: " + ", ".join(f"{share:.3f}" for share in closed.tolist()))


if __name__ == "__main__":
    main()
