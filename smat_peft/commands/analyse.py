"""Draw what an adapter's experts have learned, how it was learned, and what sparsity and experts are worth.

    python -m smat_peft.analyse outputs/demo
    python -m smat_peft.analyse outputs/demo --pictures capacity depth
    python -m smat_peft.analyse --runs SMAT=outputs/demo dense=outputs/dense "no teachers=outputs/plain"
    python -m smat_peft.analyse --sweep docs/results/sweep.csv

Each picture is written as PDF and PNG with its numbers as JSON beside. Of an adapter:

  capacity   share of open gates by layer type (attention, MLP, norms, biases, embeddings): each expert, their mean
             and their range. Where does the adapter spend its weights?
  depth      the same by block of the backbone
  overlap    intersection over union of the weights that two experts open, beside that of random masks of equal
             density. Are experts different?
  selection  mean expert weights that the router gives tasks of each domain, and a tree that joins domains that choose
             alike. Do kinds of tasks have experts of their own?
  alignment  cosine of the gradients of two domains' tasks, for the delta and for each expert's part of it, at the
             backbone's weights and at the trained ones; dotted, the same domain on other tasks. Do experts keep apart
             tasks that would disturb each other?

Of runs (--runs) that kept their checkpoints (--save_total_limit 0 --checkpointing_steps 20):

  learning   accuracy over the number of training tasks, on validation classes of the training domains and on dev-OOD
             domains, with 95 % intervals; and how many tasks each run takes to the accuracy that another ends with.
             Records are kept in learning_records: what was measured is not measured again

Of a sweep (--sweep, by examples/sweep.py):

  sweep      ID and dev-OOD accuracy over sparsity and number of experts

Episodes are drawn as python -m smat_peft.evaluate draws them: from validation classes of the ID domains and from
dev-OOD domains, and from what is kept for a final test only where --look_at_test or --ood_domains asks for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from torch import nn

from smat_peft.assets import DEMO_BACKBONE
from smat_peft.commands.checks import check_image_size, make_output_dir, require_at_least
from smat_peft.commands.console import HelpFormatter, run_command
from smat_peft.commands.evaluate_inputs import add_domain_arguments, load_measured_domains
from smat_peft.episodes.cache import ImageCache
from smat_peft.episodes.images import load_image_transform
from smat_peft.errors import ConfigurationError, DataError
from smat_peft.evaluation.analysis.alignment import draw_alignment, measure_alignment
from smat_peft.evaluation.analysis.capacity import (
    capacity_by_depth,
    capacity_by_layer_type,
    draw_capacity_by_depth,
    draw_capacity_by_layer_type,
)
from smat_peft.evaluation.analysis.gates import read_open_gates
from smat_peft.evaluation.analysis.learning import draw_learning_curves, measure_learning_curve, reached, reached_table
from smat_peft.evaluation.analysis.overlap import draw_overlap, measure_overlap
from smat_peft.evaluation.analysis.pictures import write_numbers
from smat_peft.evaluation.analysis.selection import draw_selection
from smat_peft.evaluation.analysis.sweep import draw_sweep, read_sweep
from smat_peft.evaluation.predictors import SMAT
from smat_peft.evaluation.protocol import EvaluationDomain, episode_samplers, evaluate
from smat_peft.evaluation.routing import Routing
from smat_peft.few_shot.loading import backbone_name, load_adapter, load_backbone
from smat_peft.tuner.adapters import adapter_config, has_experts

Numbers = TypeVar("Numbers")

RECORDS = "learning_records"
PICTURES = ("capacity", "depth", "overlap", "selection", "alignment")
OF_SEVERAL = {"overlap", "selection"}  # a single expert has nothing to show in them
OF_EPISODES = {"selection", "alignment"}


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
    parser.add_argument(
        "--model_name_or_path", metavar="BACKBONE", help="the backbone, if not the one that the adapter names"
    )
    add_domain_arguments(parser)
    parser.set_defaults(validation_domains=[])  # nothing is fitted
    episodes = parser.add_argument_group("episodes")
    episodes.add_argument("--episodes", type=int, default=40, help="of each domain, for selection and learning")
    episodes.add_argument("--gradient_episodes", type=int, default=16, help="of each domain, for alignment")
    episodes.add_argument("--ways", type=int, default=5, help="classes of an episode")
    episodes.add_argument("--shots", type=int, default=5, help="support images of a class")
    episodes.add_argument("--queries", type=int, default=10, help="most query images of a class")
    episodes.add_argument("--seed", type=int, default=0, help="seed of the episodes")
    return parser


def analyse(argv: Sequence[str]) -> None:
    """Measure, draw, and say what was written."""
    arguments = _parser().parse_args(argv)
    _check(arguments)
    make_output_dir(arguments.output_dir)
    if arguments.adapter is not None:
        _draw_adapter(arguments, arguments.output_dir)
    if arguments.runs:
        _draw_runs(arguments, arguments.output_dir)
    if arguments.sweep is not None:
        _leave(draw_sweep, read_sweep(arguments.sweep), arguments.output_dir / "sweep")


def _draw_adapter(arguments: argparse.Namespace, folder: Path) -> None:
    model, backbone = _load(arguments.adapter, arguments.model_name_or_path)
    if not has_experts(model):
        raise ConfigurationError(f"{arguments.adapter} is no SMAT adapter: it has no experts to draw")
    if adapter_config(model).packed is not None:
        raise ConfigurationError(f"{arguments.adapter} is packed and has no gate logits; draw what it was packed from")
    wanted = set(arguments.pictures)
    if adapter_config(model).num_experts == 1:
        for name in sorted(wanted & OF_SEVERAL):
            print(f"{name}: left out, there is only one expert")
        wanted -= OF_SEVERAL
    domains, drawn_from = _episodes(arguments, model, backbone) if wanted & OF_EPISODES else ([], {})
    if wanted & OF_EPISODES and len(domains) < 2:
        raise DataError(f"selection and alignment compare domains; only {domains[0].domain.name} has enough classes")
    gates = read_open_gates(model)
    if "capacity" in wanted:
        _leave(draw_capacity_by_layer_type, capacity_by_layer_type(gates), folder / "capacity")
    if "depth" in wanted:
        _leave(draw_capacity_by_depth, capacity_by_depth(gates), folder / "depth")
    if "overlap" in wanted:
        _leave(draw_overlap, measure_overlap(gates), folder / "overlap")
    if "selection" in wanted:
        evaluation = evaluate({SMAT: model}, domains, episodes=arguments.episodes, **drawn_from)
        routing = Routing.of(evaluation.records)
        draw_selection(routing, evaluation.domains, folder / "selection")
        _keep(folder / "selection", routing.as_dict())
    if "alignment" in wanted:
        alignment = measure_alignment(model, episode_samplers(domains, **drawn_from), arguments.gradient_episodes)
        _leave(draw_alignment, alignment, folder / "alignment")


def _draw_runs(arguments: argparse.Namespace, folder: Path) -> None:
    curves = []
    domains: list[EvaluationDomain] = []
    drawn_from: dict[str, Any] = {}
    for label, run_dir in arguments.runs:
        model, backbone = _load(str(run_dir), arguments.model_name_or_path)
        if not domains:
            domains, drawn_from = _episodes(arguments, model, backbone)
        kept = {"output_dir": folder / RECORDS, "settings": {"backbone": backbone}}
        episodes = {"episodes": arguments.episodes, **drawn_from, **kept}
        curves.append(measure_learning_curve(label, model, run_dir, domains, **episodes))
    levels = reached(curves)
    draw_learning_curves(curves, folder / "learning")
    _keep(folder / "learning", {"curves": curves, "reached": levels})
    print(reached_table(levels))


def _load(adapter: str, backbone: str | None) -> tuple[nn.Module, str]:
    """An adapter on its backbone, and the backbone's name."""
    backbone = backbone or backbone_name(adapter)
    model = load_adapter(load_backbone(backbone), adapter)
    return model.to(Accelerator().device), backbone


def _episodes(
    arguments: argparse.Namespace, model: nn.Module, backbone: str
) -> tuple[list[EvaluationDomain], dict[str, Any]]:
    """The domains to draw episodes from, and how."""
    if backbone != DEMO_BACKBONE and not (arguments.id_domains or arguments.dev_ood_domains or arguments.ood_domains):
        raise ConfigurationError("name the domains to draw tasks from: --id_domains, --dev_ood_domains")
    domains, _ = load_measured_domains(arguments, backbone)
    transform = load_image_transform(backbone, arguments.image_size)
    check_image_size(model, transform, backbone)
    return domains, {"transform": transform, "cache": ImageCache(), "seed": arguments.seed}


def _leave(draw: Callable[[Numbers, Path], None], numbers: Numbers, path: Path) -> None:
    draw(numbers, path)
    _keep(path, numbers)


def _keep(path: Path, numbers: Any) -> None:
    write_numbers(path, numbers)
    print(f"{path}.pdf, .png, .json")


def _run(text: str) -> tuple[str, Path]:
    label, equals, folder = text.partition("=")
    if not (label and equals and folder):
        raise argparse.ArgumentTypeError(f"write LABEL=FOLDER, not {text!r}")
    return label, Path(folder)


def _check(arguments: argparse.Namespace) -> None:
    if arguments.adapter is None and not arguments.runs and arguments.sweep is None:
        raise ConfigurationError("nothing to draw: name an ADAPTER, --runs or --sweep")
    require_at_least(arguments, 0, "seed")
    require_at_least(arguments, 1, "shots", "queries")
    require_at_least(arguments, 2, "episodes", "gradient_episodes", "ways")
    labels = [label for label, _ in arguments.runs]
    if len(set(labels)) < len(labels):
        raise ConfigurationError(f"--runs must have different labels, got {', '.join(labels)}")
