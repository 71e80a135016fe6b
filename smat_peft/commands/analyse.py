"""Draw what an adapter's experts have learned, how it was learned, and what sparsity and experts are worth.

    python -m smat_peft.analyse outputs/demo
    python -m smat_peft.analyse outputs/demo --pictures capacity depth
    python -m smat_peft.analyse --runs SMAT=outputs/demo dense=outputs/dense "no teachers=outputs/plain"
    python -m smat_peft.analyse --sweep docs/results/sweep.csv

Each picture is written as PDF and PNG with its numbers as JSON beside. Of an adapter:

  capacity   share of open gates by layer type (attention, MLP, norms, biases, embeddings): the mean over experts, its
             standard deviation, each expert. Where does the adapter spend its weights?
  depth      the same by block of the backbone
  selection  mean expert weights that the router gives tasks of each domain, and a tree that joins domains that choose
             alike. Do kinds of tasks have experts of their own?
  overlap    intersection over union of the weights that two experts open, beside that of random masks of equal
             density. Are experts different?
  alignment  cosine of the gradients of two domains' tasks, for the delta and for each expert's part of it, at the
             backbone's weights and at the trained ones; dotted, the same domain on other tasks. Do experts keep apart
             tasks that would disturb each other?

Of runs (--runs) that kept their checkpoints (--save_total_limit 0 --checkpointing_steps 20):

  learning   accuracy over the number of training tasks, on validation classes of the training domains and on dev-OOD
             domains, with 95 % intervals

Of a sweep (--sweep, by examples/sweep.py):

  sweep      ID and dev-OOD accuracy over sparsity and number of experts

Episodes are drawn from the validation classes of --train_domains and from all classes of --dev_ood_domains: for the
packaged backbone from those of the built-in suite. Domains for a final test are looked at only if --ood_domains asks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smat_peft.commands.analysis_material import Material
from smat_peft.commands.console import HelpFormatter, run_command
from smat_peft.errors import ConfigurationError, DataError
from smat_peft.evaluation.alignment_measuring import measure_alignment
from smat_peft.evaluation.alignment_plots import draw_alignment
from smat_peft.evaluation.analysis import overlap, random_overlap
from smat_peft.evaluation.capacity_measuring import capacity_by_depth, capacity_by_layer_type, read_open_gates
from smat_peft.evaluation.capacity_plots import draw_capacity_by_depth, draw_capacity_by_layer_type
from smat_peft.evaluation.learning_measuring import measure_learning_curve
from smat_peft.evaluation.learning_plots import draw_learning_curves
from smat_peft.evaluation.overlap_plots import Overlap, draw_overlap
from smat_peft.evaluation.plots import write_numbers
from smat_peft.evaluation.selection_measuring import measure_selection
from smat_peft.evaluation.selection_plots import draw_selection
from smat_peft.evaluation.sweep_plots import draw_sweep
from smat_peft.evaluation.sweep_results import read_sweep
from smat_peft.few_shot.loading import backbone_of, load_adapter, load_backbone
from smat_peft.tuner.tasks import adapter_config, has_experts

PICTURES = ("capacity", "depth", "selection", "overlap", "alignment")
OF_SEVERAL = ("selection", "overlap")  # a single expert has nothing to show in them
OF_EPISODES = ("selection", "alignment")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(analyse, sys.argv[1:] if argv is None else argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m smat_peft.analyse", description=__doc__, formatter_class=HelpFormatter
    )
    parser.add_argument("adapter", metavar="ADAPTER", nargs="?", help="a SMAT adapter, on the Hub or in a folder")
    parser.add_argument("--pictures", nargs="+", choices=PICTURES, default=list(PICTURES), help="of the adapter")
    parser.add_argument(
        "--runs", nargs="+", type=_run, default=[], metavar="LABEL=FOLDER", help="runs to draw learning curves of"
    )
    parser.add_argument("--sweep", type=Path, metavar="FILE.csv", help="results of examples/sweep.py")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/analysis"), help="where pictures go")
    parser.add_argument("--model", metavar="BACKBONE", help="the backbone, if not the one that the adapter names")
    parser.add_argument("--train_domains", nargs="+", default=[], metavar="DOMAIN", help="that were trained on")
    parser.add_argument("--dev_ood_domains", nargs="+", default=[], metavar="DOMAIN", help="to look at while choosing")
    parser.add_argument("--ood_domains", nargs="+", default=[], metavar="DOMAIN", help="kept for a final test")
    parser.add_argument("--episodes", type=int, default=40, help="of each domain, for selection and learning")
    parser.add_argument(
        "--gradient_episodes", type=int, default=16, help="of each domain, for alignment: two halves of them"
    )
    parser.add_argument("--ways", type=int, default=5, help="classes of an episode")
    parser.add_argument("--shots", type=int, default=5, help="support images of a class")
    parser.add_argument("--queries", type=int, default=10, help="most query images of a class")
    parser.add_argument("--image_size", type=int, help="height and width of images, in place of the image processor's")
    parser.add_argument("--seed", type=int, default=0, help="seed of the episodes")
    return parser


def analyse(argv: Sequence[str]) -> None:
    """Measure, draw, and say what was written."""
    arguments = _parser().parse_args(argv)
    _check(arguments)
    folder: Path = arguments.output_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--output_dir {folder} cannot be made: {error.strerror}") from error
    if arguments.adapter is not None:
        _draw_adapter(arguments, folder)
    if arguments.runs:
        _draw_runs(arguments, folder)
    if arguments.sweep is not None:
        _keep(folder / "sweep", read_sweep(arguments.sweep), draw_sweep)


def _draw_adapter(arguments: argparse.Namespace, folder: Path) -> None:
    model, backbone = _load(arguments.adapter, arguments.model)
    if not has_experts(model):
        raise ConfigurationError(f"{arguments.adapter} is no SMAT adapter: it has no experts to draw")
    drawn = set(arguments.pictures)
    if adapter_config(model).num_experts == 1:
        for name in sorted(drawn & {*OF_SEVERAL}):
            print(f"{name}: left out, there is only one expert")
        drawn -= {*OF_SEVERAL}
    material = Material(arguments, backbone, model) if drawn & {*OF_EPISODES} else None  # before anything is drawn
    gates = read_open_gates(model)
    if "capacity" in drawn:
        _keep(folder / "capacity", capacity_by_layer_type(gates), draw_capacity_by_layer_type)
    if "depth" in drawn:
        _keep(folder / "depth", capacity_by_depth(gates), draw_capacity_by_depth)
    if "overlap" in drawn:
        random = [random_overlap(gates, by_parameter=each) for each in (False, True)]
        _keep(folder / "overlap", Overlap(overlap(gates), *random), draw_overlap)
    if material is not None and "selection" in drawn:
        _keep(folder / "selection", measure_selection(model, material.episodes(arguments.episodes)), draw_selection)
    if material is not None and "alignment" in drawn:
        episodes = material.episodes(arguments.gradient_episodes)
        _keep(folder / "alignment", measure_alignment(model, episodes), draw_alignment)


def _draw_runs(arguments: argparse.Namespace, folder: Path) -> None:
    curves, material = [], None
    for label, run_dir in arguments.runs:
        model, backbone = _load(str(run_dir), arguments.model)
        material = material or Material(arguments, backbone, model)
        settings = material.settings(arguments.episodes)
        curves.append(measure_learning_curve(label, model, run_dir, material.domains, **settings))
    _keep(folder / "learning", curves, draw_learning_curves)


def _load(adapter: str, backbone: str | None) -> tuple[nn.Module, str]:
    """An adapter on its backbone, and the backbone's name."""
    backbone = backbone or backbone_of(adapter)
    model = load_adapter(load_backbone(backbone), adapter)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), backbone


def _keep(path: Path, numbers: Any, draw: Callable[[Any, Path], None]) -> None:
    write_numbers(path, numbers)
    draw(numbers, path)
    print(f"{path}.pdf, .png, .json")


def _run(text: str) -> tuple[str, Path]:
    label, equals, folder = text.partition("=")
    if not (label and equals and folder):
        raise argparse.ArgumentTypeError(f"write LABEL=FOLDER, not {text!r}")
    return label, Path(folder)


def _check(arguments: argparse.Namespace) -> None:
    if arguments.adapter is None and not arguments.runs and arguments.sweep is None:
        raise ConfigurationError("nothing to draw: name an ADAPTER, --runs or --sweep")
    for name, least in (("episodes", 2), ("gradient_episodes", 2), ("ways", 2), ("shots", 1), ("queries", 1)):
        if getattr(arguments, name) < least:
            raise ConfigurationError(f"--{name} must be at least {least}, got {getattr(arguments, name)}")
    labels = [label for label, _ in arguments.runs]
    if len(set(labels)) < len(labels):
        raise ConfigurationError(f"--runs must have different labels, got {', '.join(labels)}")
