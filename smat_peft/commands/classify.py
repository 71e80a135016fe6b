"""Label images by a few examples of each class, or find out how good the examples are.

    python -m smat_peft.classify examples/ photos/ --model facebook/dino-vits16
    python -m smat_peft.classify examples/ --model facebook/dino-vits16
    python -m smat_peft.classify examples/ --model facebook/dino-vits16 --compare

`examples/` holds one folder of images for each class, named after it (`examples/cat/1.jpg`); one image a class is
enough, five are better. `photos/` holds the images to label, or class folders of them like `examples/`: then the
accuracy is printed as well. Without it each example is left out in turn and labelled by the others: how accurate that
is, which classes are confused, which images may lie in a wrong folder. `--compare` says which method suits them.

The model's features of the examples are averaged for each class; an adapter (`--adapter`) first fits the model to the
examples, and `--adaptation` fine-tunes it on them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from smat_peft.assets import DEMO_BACKBONE, backbone_source
from smat_peft.commands.answers import Answers
from smat_peft.commands.checks import check_image_size, require_at_least
from smat_peft.commands.class_folders import FolderImages, read_examples, read_queries
from smat_peft.commands.compare_methods import check_comparable, compare_methods
from smat_peft.commands.console import HelpFormatter, number_or, run_command
from smat_peft.commands.contact_sheet import write_contact_sheet
from smat_peft.commands.support_report import leave_examples_out, support_report
from smat_peft.errors import ConfigurationError, DataError
from smat_peft.few_shot.backbone import DEFAULT_BATCH_SIZE
from smat_peft.few_shot.classifier import NONE_OF_THESE, FewShotClassifier
from smat_peft.few_shot.fine_tuning import KINDS
from smat_peft.few_shot.loading import find_model


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(classify, sys.argv[1:] if argv is None else argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m smat_peft.classify", description=__doc__, formatter_class=HelpFormatter
    )
    parser.add_argument("support_dir", type=Path, metavar="SUPPORT_DIR", help="folder with a folder for each class")
    parser.add_argument(
        "query_dir", type=Path, metavar="QUERY_DIR", nargs="?", help="folder of images, or of class folders"
    )
    parser.add_argument(
        "--model",
        default=DEMO_BACKBONE,
        metavar="NAME",
        help="vision backbone on the Hub or in a folder, an adapter that names its backbone, or demo-vit, the packaged "
        "backbone for small pictures of signs",
    )
    parser.add_argument("--adapter", metavar="NAME", help="adapter for that backbone, on the Hub or in a folder")
    parser.add_argument("--revision", help="branch, tag or commit of the adapter, or of the backbone without one")
    parser.add_argument("--token", help="for private repositories of the Hub; that of `hf auth login` if not given")
    parser.add_argument("--compare", action="store_true", help="try several methods on the examples, and name one")
    parser.add_argument("--adaptation", choices=KINDS, default="prototype", help="no gradient step, or fine-tuning")
    parser.add_argument("--steps", type=int, default=50, help="steps of fine-tuning")
    parser.add_argument(
        "--learning_rate",
        type=number_or("auto"),
        default="auto",
        help="of fine-tuning; auto tries a few on the examples, and without QUERY_DIR takes a constant",
    )
    parser.add_argument(
        "--augment", action=argparse.BooleanOptionalAction, default=True, help="fine-tune on images changed at random"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of fine-tuning and of splits")
    parser.add_argument(
        "--reject_below", type=float, metavar="P", help="answer 'none of these' where no class is this probable"
    )
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
    parser.add_argument("--sheet", type=Path, metavar="FILE.html", help="write a page with all images and answers here")
    return parser


def classify(argv: Sequence[str]) -> None:
    """Read the folders, label the images or look into the examples, print and write the answers."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    _check(arguments, parser)
    skip = arguments.on_bad_image == "skip"
    examples = read_examples(arguments.support_dir, skip)
    queries = None if arguments.query_dir is None else read_queries(arguments.query_dir, examples.classes, skip)
    if arguments.compare:
        check_comparable(examples)
    classifier = FewShotClassifier.from_pretrained(
        arguments.model,
        arguments.adapter,
        revision=arguments.revision,
        token=arguments.token,
        image_size=arguments.image_size,
        device="cuda" if torch.cuda.is_available() else None,
        adaptation=arguments.adaptation,
        steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        augment=arguments.augment,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
    if arguments.model == DEMO_BACKBONE and arguments.adapter is None:
        print(f"by {DEMO_BACKBONE}, which is for small pictures of signs; --model names another", file=sys.stderr)
    check_image_size(classifier.model, classifier.image_processor, arguments.model)
    if arguments.compare:
        source = find_model(arguments.model, arguments.adapter, revision=arguments.revision, token=arguments.token)
        print(compare_methods(classifier, examples, source))
        return
    if queries is None:
        answers = leave_examples_out(classifier, examples)
        report = support_report(answers, examples)
    else:
        answers = _label(classifier, examples, queries, arguments.reject_below or 0.0)
        report = answers.table() + (f"\n\n{answers.accuracy()}" if answers.true_classes else "")
    if arguments.output is not None:
        answers.write_csv(arguments.output)
    if arguments.sheet is not None:
        write_contact_sheet(arguments.sheet, answers, str(arguments.query_dir or arguments.support_dir))
    print(report)  # at last: the reader of a pipe may have gone


def _label(
    classifier: FewShotClassifier, examples: FolderImages, queries: FolderImages, reject_below: float
) -> Answers:
    if reject_below and NONE_OF_THESE in examples.classes:
        raise ConfigurationError(f"a class is called {NONE_OF_THESE!r}, as --reject_below answers; rename its folder")
    classifier.fit(examples.paths, examples.classes)
    size, paths = classifier.batch_size, queries.paths
    starts = tqdm(range(0, len(paths), size), desc="classifying", unit="batch", disable=None)
    batches = [classifier.predict_proba(paths[start : start + size]) for start in starts]
    classes = [str(name) for name in classifier.classes_]
    return Answers(queries.names, paths, queries.classes, classes, np.concatenate(batches), reject_below)


def _check(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    for name in ("output", "sheet"):
        file: Path | None = getattr(arguments, name)
        if file is not None:
            _check_writable(f"--{name} {file}", file)
    require_at_least(arguments, 0, "seed")
    require_at_least(arguments, 1, "batch_size")
    if arguments.sheet is not None and arguments.sheet.suffix not in (".html", ".htm"):
        raise ConfigurationError(f"--sheet {arguments.sheet}: the page is HTML; name it so, as in sheet.html")
    if arguments.reject_below is not None and not 0 <= arguments.reject_below <= 1:
        raise ConfigurationError(f"--reject_below must be a probability, got {arguments.reject_below}")
    others = (arguments.query_dir, arguments.reject_below, arguments.output, arguments.sheet)
    if arguments.compare and any(other is not None for other in others):
        raise ConfigurationError(
            "--compare looks at the examples alone: leave out QUERY_DIR, --reject_below, --output and --sheet"
        )
    if arguments.query_dir is None and arguments.reject_below is not None:
        raise ConfigurationError("--reject_below is for images to label: give QUERY_DIR")
    if arguments.compare and arguments.adaptation == "full":
        raise ConfigurationError("--compare fine-tunes with LoRA: leave out --adaptation full")
    fine_tuning = ("steps", "learning_rate", "augment")
    is_given = any(getattr(arguments, name) != parser.get_default(name) for name in fine_tuning)
    if is_given and arguments.adaptation == "prototype" and not arguments.compare:
        raise ConfigurationError(
            "--steps, --learning_rate and --no-augment are for fine-tuning: add --adaptation, or leave them out"
        )
    source = backbone_source(arguments.adapter or arguments.model)
    if arguments.revision is not None and Path(source).is_dir():
        raise ConfigurationError(f"{source} is a folder, which has no revision {arguments.revision!r}; leave it out")


def _check_writable(option: str, file: Path) -> None:
    try:
        folder = file.resolve().parent
        if not folder.is_dir():
            raise DataError(f"{option}: there is no folder {folder}")
        if file.is_dir():
            raise DataError(f"{option} is a folder; name a file in it")
        if file.exists() and not file.is_file():
            raise DataError(f"{option} is no ordinary file, which one would take the place of")
        if not os.access(folder, os.W_OK):
            raise DataError(f"{option}: folder {folder} cannot be written to")
    except OSError as error:
        raise DataError(f"{option}: {error.strerror}") from error
