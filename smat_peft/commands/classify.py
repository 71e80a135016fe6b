"""Label a folder of images by a few examples of each class.

    python -m smat_peft.classify examples/ photos/ --model facebook/dino-vits16

`examples/` holds one folder of images for each class, named after it (`examples/cat/1.jpg`); one image a class is
enough, five are better. `photos/` holds the images to label, or class folders of them like `examples/`: then the
accuracy is printed as well. No training takes place: the model's features of the examples are averaged for each class,
and an adapter (`--adapter`) first fits the model to the examples.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from smat_peft.assets import DEMO_BACKBONE
from smat_peft.commands.checks import check_image_size
from smat_peft.commands.console import HelpFormatter, run_command
from smat_peft.episodes.folders import FORMATS, read_image, sub_folders
from smat_peft.errors import ConfigurationError, DataError
from smat_peft.evaluation.statistics import proportion_interval
from smat_peft.evaluation.tables import render_table
from smat_peft.few_shot.backbone import DEFAULT_BATCH_SIZE
from smat_peft.few_shot.classifier import FewShotClassifier


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(classify, sys.argv[1:] if argv is None else argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m smat_peft.classify", description=__doc__, formatter_class=HelpFormatter
    )
    parser.add_argument("support_dir", type=Path, metavar="SUPPORT_DIR", help="folder with a folder for each class")
    parser.add_argument("query_dir", type=Path, metavar="QUERY_DIR", help="folder of images, or of class folders")
    parser.add_argument(
        "--model",
        default=DEMO_BACKBONE,
        metavar="BACKBONE",
        help="vision backbone on the Hub or in a folder, or demo-vit, the packaged one for small pictures of signs",
    )
    parser.add_argument("--adapter", metavar="PATH", help="adapter for that backbone, on the Hub or in a folder")
    parser.add_argument(
        "--on_bad_image",
        choices=("error", "skip"),
        default="error",
        help="stop at an image that cannot be read, or leave it out and say so",
    )
    parser.add_argument(
        "--batch_size", type=int, default=DEFAULT_BATCH_SIZE, help="images that go through the backbone at a time"
    )
    parser.add_argument("--image_size", type=int, help="height and width of images in place of the image processor's")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="write the probabilities of all classes here")
    return parser


def classify(argv: Sequence[str]) -> None:
    """Read the folders, label the images, print and write the answers."""
    arguments = _parser().parse_args(argv)
    output: Path | None = arguments.output
    if output is not None and not output.absolute().parent.is_dir():
        raise DataError(f"--output {output}: there is no folder {output.absolute().parent}")
    if output is not None and output.is_dir():
        raise DataError(f"--output {output} is a folder; name a file in it")
    if arguments.batch_size < 1:
        raise ConfigurationError(f"--batch_size must be at least 1, got {arguments.batch_size}")
    skip = arguments.on_bad_image == "skip"
    examples = _examples(arguments.support_dir, skip)
    queries, true_classes = _queries(arguments.query_dir, set(examples), skip)

    classifier = FewShotClassifier.from_pretrained(
        arguments.model,
        arguments.adapter,
        image_size=arguments.image_size,
        batch_size=arguments.batch_size,
        device="cuda" if torch.cuda.is_available() else None,
    )
    check_image_size(classifier.model, classifier.image_processor, arguments.model)
    classifier.fit(
        [path for paths in examples.values() for path in paths],
        [name for name, paths in examples.items() for _ in paths],
    )
    starts = tqdm(range(0, len(queries), arguments.batch_size), desc="classifying", unit="batch", disable=None)
    batches = [classifier.predict_proba(queries[start : start + arguments.batch_size]) for start in starts]
    answers = _Answers(
        [str(path.relative_to(arguments.query_dir)) for path in queries],
        true_classes,
        [str(name) for name in classifier.classes_],
        np.concatenate(batches),
    )
    print(answers.table())
    if true_classes:
        print(f"\n{answers.accuracy()}")
    if output is not None:
        answers.write(output)


@dataclass(frozen=True)
class _Answers:
    images: Sequence[str]
    true_classes: Sequence[str]  # empty where they are not known
    classes: Sequence[str]
    probabilities: NDArray[np.float64]  # [N, C]

    @cached_property
    def ranked(self) -> NDArray[np.intp]:
        return np.argsort(-self.probabilities, axis=1, kind="stable")

    @cached_property
    def labels(self) -> list[str]:
        return [self.classes[best] for best in self.ranked[:, 0]]

    def table(self) -> str:
        header = ["image", "class"] if self.true_classes else ["image"]
        rows = []
        for number, (best, second, *_) in enumerate(self.ranked):
            row = [self.images[number], *self.true_classes[number : number + 1]]
            for place in (best, second):
                row += [self.classes[place], f"{self.probabilities[number, place]:.3f}"]
            rows.append(row)
        header += ["label", "probability", "runner-up", "probability"]
        return render_table(header, rows, "<" * (len(header) - 4) + "<><>", "text")

    def accuracy(self) -> str:
        correct = sum(label == name for label, name in zip(self.labels, self.true_classes, strict=True))
        low, high = proportion_interval(correct, len(self.labels))
        share = 100 * correct / len(self.labels)
        interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"
        return f"accuracy {share:.1f} % ({correct} of {len(self.labels)} images; {interval})"

    def write(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            known = ["class"] if self.true_classes else []
            writer.writerow(["image", *known, "label", *(f"probability of {name}" for name in self.classes)])
            for number, image in enumerate(self.images):
                figures = (f"{probability:.6f}" for probability in self.probabilities[number])
                writer.writerow([image, *self.true_classes[number : number + 1], self.labels[number], *figures])


def _examples(folder: Path, skip: bool) -> dict[str, list[Path]]:
    examples = _class_folders(folder)
    if len(examples) < 2:
        raise DataError(
            f"{folder} holds {len(examples)} class folders; put the examples of each class into a folder of the "
            "class's name, two classes at least"
        )
    return {name: _usable(paths, skip, f"class folder {folder / name}") for name, paths in examples.items()}


def _queries(folder: Path, known: set[str], skip: bool) -> tuple[list[Path], list[str]]:
    """The images to label, and their classes where the folder holds class folders."""
    classes = {name: paths for name, paths in _class_folders(folder).items() if paths}
    flat = _images(folder)
    if flat and classes:
        raise DataError(f"{folder} holds both images and folders of images; give a folder of one or the other")
    if not classes:
        return _usable(flat, skip, str(folder)), []
    unknown = sorted(set(classes) - known)
    if unknown:
        raise DataError(
            f"{folder}: class {unknown[0]!r} has no examples; there are examples of {', '.join(sorted(known))}"
        )
    usable = {name: _usable(paths, skip, f"class folder {folder / name}") for name, paths in classes.items()}
    return [p for paths in usable.values() for p in paths], [name for name, paths in usable.items() for _ in paths]


def _class_folders(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    return {entry.name: _images(entry) for entry in sub_folders(folder)}


def _images(folder: Path) -> list[Path]:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return [entry for entry in entries if entry.suffix.lower() in FORMATS and entry.is_file()]


def _usable(paths: Sequence[Path], skip: bool, where: str) -> list[Path]:
    usable = [path for path in paths if _is_readable(path)] if skip else list(paths)
    if not usable:
        raise DataError(f"{where} holds no images that can be read ({', '.join(sorted(FORMATS))})")
    return usable


def _is_readable(path: Path) -> bool:
    try:
        read_image(path)
    except DataError as error:
        print(f"left out: {error}", file=sys.stderr)
        return False
    return True
