"""How good is it? A backbone, and adapters for it, on few-shot episodes of several domains.

    python -m smat_peft.evaluate outputs/demo
    python -m smat_peft.evaluate outputs/mine --id_domains "folder:data/*" --dev_ood_domains folder:other
    python -m smat_peft.evaluate --model_name_or_path facebook/dino-vits16 --dev_ood_domains folder:other

The adapter may be of SMAT or of any other PEFT method; without one the backbone alone is measured. All predictors see
the very same episodes. It ends with tables of accuracy, of paired differences and of calibration, and leaves them in
the output directory with the records of all episodes (parquet), `report.json` and `accuracies.png`. An evaluation that
was cut goes on where it stopped, and under `torchrun -m smat_peft.evaluate` or `accelerate launch -m
smat_peft.evaluate` the episodes are spread over the processes.

By default it is blind to what a final comparison is made on: of the ID domains it takes the validation classes, and
test-OOD domains are not looked at. With --look_at_test, or where --ood_domains are named, it takes the ID domains' test
classes and the test-OOD domains: once per method, when nothing is to be chosen any more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from accelerate import Accelerator

from smat_peft.assets import DEMO_BACKBONE
from smat_peft.commands.checks import check_image_size, list_left_out, make_output_dir, require_at_least
from smat_peft.commands.console import HelpFormatter, number_or, run_command
from smat_peft.commands.evaluate_inputs import (
    adapter_digest,
    add_domain_arguments,
    backbone_of_adapters,
    load_measured_domains,
    load_models,
    looks_at_test,
    predictors_of,
)
from smat_peft.commands.protocol import shared_by
from smat_peft.episodes.cache import ImageCache
from smat_peft.episodes.fixed import FixedEpisodes
from smat_peft.episodes.images import load_image_transform
from smat_peft.errors import ConfigurationError, DataError
from smat_peft.evaluation.fitting import RateSelection
from smat_peft.evaluation.interval_plot import plot_accuracies
from smat_peft.evaluation.manifest import write_manifest
from smat_peft.evaluation.predictors import BACKBONE, SMAT
from smat_peft.evaluation.protocol import episode_samplers, evaluate
from smat_peft.evaluation.records import Evaluation
from smat_peft.evaluation.report import format_calibration, format_report, report_as_dict
from smat_peft.evaluation.routing import Routing
from smat_peft.evaluation.tables import TableStyle
from smat_peft.few_shot.adaptation import PROTOTYPE
from smat_peft.few_shot.backbone import DEFAULT_BATCH_SIZE
from smat_peft.few_shot.fine_tuning import KINDS, Adaptation
from smat_peft.few_shot.learning_rate import default_learning_rate
from smat_peft.files import replacing, write_text

RECORDS, REPORT, TABLES, PICTURE = "records", "report.json", "report.md", "accuracies.png"
BLIND = "Not looked at: test classes of the ID domains, and test-OOD domains (--look_at_test, --ood_domains)."
OF_VALIDATION = (
    "ID figures are of validation classes, on which temperatures and rates are fitted, too, unless others are named "
    "(--validation_domains)."
)
SEARCHES = ("auto", "validation", "test_tasks")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(evaluate_adapters, sys.argv[1:] if argv is None else argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m smat_peft.evaluate", description=__doc__, formatter_class=HelpFormatter
    )
    parser.add_argument(
        "adapters", nargs="*", metavar="ADAPTER", help="adapter on the Hub or in a folder; several are compared"
    )
    parser.add_argument(
        "--model_name_or_path",
        metavar="BACKBONE",
        help=f"vision backbone on the Hub or in a folder; the adapter's own if not given, else {DEMO_BACKBONE}",
    )
    domains = add_domain_arguments(parser)
    domains.add_argument(
        "--validation_domains",
        nargs="+",
        default=[],
        metavar="DOMAIN",
        help="domains on whose validation classes temperatures and rates are fitted; the ID domains",
    )
    episodes = parser.add_argument_group("episodes")
    episodes.add_argument("--episodes", type=int, default=100, help="episodes of each domain")
    episodes.add_argument("--validation_episodes", type=int, default=10, help="of each validation domain; 0: none")
    episodes.add_argument("--ways", type=int, help="classes of an episode; varied if not given")
    episodes.add_argument("--shots", type=int, help="support images of a class; varied if not given")
    episodes.add_argument("--queries", type=int, default=10, help="most query images of a class")
    episodes.add_argument("--seed", type=int, default=0, help="seed of the episodes")
    episodes.add_argument("--manifest_out", type=Path, metavar="FILE.jsonl", help="write which images they are made of")
    episodes.add_argument("--manifest", type=Path, metavar="FILE.jsonl", help="take the episodes of such a file")
    tuning = parser.add_argument_group("adaptation to a support set")
    tuning.add_argument(
        "--adaptation", nargs="+", choices=KINDS, default=["prototype"], help="no gradient step, or fine-tuning"
    )
    tuning.add_argument("--steps", type=int, default=50, help="steps of fine-tuning")
    tuning.add_argument(
        "--learning_rate",
        "--lr_selection",
        type=number_or(*SEARCHES),
        default="validation",
        help="a number, or what it is chosen on: auto (images left out of each support), validation (episodes), "
        "test_tasks (labels of test tasks, as in the published protocol)",
    )
    tuning.add_argument(
        "--augment", action=argparse.BooleanOptionalAction, default=True, help="fine-tune on images changed at random"
    )
    parser.add_argument(
        "--batch_size", type=int, default=DEFAULT_BATCH_SIZE, help="images that go through the backbone at a time"
    )
    parser.add_argument("--training_seed", type=int, help="the adapter's, for the records")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/evaluation"), help="where all of it is left")
    return parser


def evaluate_adapters(argv: Sequence[str]) -> None:
    """Load, measure, print and write."""
    arguments = _parser().parse_args(argv)
    _check(arguments)
    accelerator = Accelerator()
    backbone = arguments.model_name_or_path or backbone_of_adapters(arguments.adapters)
    entries, fitted_on = load_measured_domains(arguments, backbone)
    transform, cache = load_image_transform(backbone, arguments.image_size), ImageCache()
    models = load_models(backbone, arguments.adapters, accelerator.device)
    check_image_size(models[BACKBONE], transform, backbone)
    shape = {name: getattr(arguments, name) for name in ("ways", "shots", "queries")}
    validation = FixedEpisodes(
        fitted_on, "validation", arguments.validation_episodes, transform=transform, cache=cache, **shape
    )
    if not len(validation) and arguments.learning_rate == "validation" and set(arguments.adaptation) != {"prototype"}:
        raise ConfigurationError(
            "fine-tuning chooses its learning rate on validation episodes, and there are none: name --id_domains or "
            "--validation_domains with enough classes, or give --learning_rate"
        )
    make_output_dir(arguments.output_dir)
    if accelerator.is_main_process:
        list_left_out(arguments.output_dir, (entry.domain for entry in entries))
        for sentence in shared_by(entries):
            print(f"Warning: {sentence}", file=sys.stderr)
    if arguments.manifest_out is not None and accelerator.is_main_process:
        samplers = episode_samplers(entries, transform=transform, seed=arguments.seed)
        write_manifest(arguments.manifest_out, samplers.values(), arguments.episodes)
    evaluations = {}
    for kind in dict.fromkeys(arguments.adaptation):
        adaptation, rate_selection = _adaptation(kind, arguments)
        evaluations[kind] = evaluate(
            predictors_of(models, validation, kind, arguments.batch_size),
            entries,
            transform=transform,
            episodes=arguments.episodes,
            seed=arguments.seed,
            manifest=arguments.manifest,
            adaptation=adaptation,
            rate_selection=rate_selection,
            validation=validation,
            training_seed=arguments.training_seed,
            cache=cache,
            accelerator=accelerator,
            output_dir=arguments.output_dir / RECORDS,
            settings={"backbone": backbone, "adapters": {path: adapter_digest(path) for path in arguments.adapters}},
        )
    if accelerator.is_main_process:
        _report(evaluations, arguments)
    accelerator.end_training()


def _adaptation(kind: str, arguments: argparse.Namespace) -> tuple[Adaptation, RateSelection]:
    """What to do on a support set. By prototypes nothing depends on steps or rates, nor do records that are kept."""
    if kind == "prototype":
        return PROTOTYPE, "given"
    if arguments.learning_rate not in SEARCHES:
        return Adaptation(kind, arguments.steps, arguments.learning_rate, arguments.augment), "given"
    rate = default_learning_rate(kind)  # any; it is replaced by the one that is chosen
    return Adaptation(kind, arguments.steps, rate, arguments.augment), arguments.learning_rate


def _check(arguments: argparse.Namespace) -> None:
    require_at_least(arguments, 0, "validation_episodes", "seed")
    require_at_least(arguments, 1, "episodes", "shots", "queries", "batch_size")
    require_at_least(arguments, 2, "ways")
    if arguments.manifest is not None and arguments.manifest_out is not None:
        raise ConfigurationError("--manifest takes episodes from a file, --manifest_out writes drawn ones: choose one")
    if arguments.manifest is not None and not arguments.manifest.is_file():
        raise DataError(f"--manifest {arguments.manifest}: there is no such file")


def _report(evaluations: dict[str, Evaluation], arguments: argparse.Namespace) -> None:
    folder: Path = arguments.output_dir
    prototype = evaluations.get("prototype")
    routing = Routing.of(prototype.records) if prototype is not None and SMAT in prototype.predictors else None

    def tables(style: TableStyle) -> str:
        parts = [
            f"## {kind}\n\n{format_report(evaluation, style)}\n\n{format_calibration(evaluation, style)}"
            for kind, evaluation in evaluations.items()
        ]
        if routing is not None:
            parts.append(f"## routing\n\n{routing.table(style)}")
        if not looks_at_test(arguments):
            has_id = any("id" in evaluation.roles for evaluation in evaluations.values())
            parts.append(f"{BLIND}\n{OF_VALIDATION}" if has_id else BLIND)
        return "\n\n".join(parts) + "\n"

    report = {
        "adaptations": {kind: report_as_dict(evaluation) for kind, evaluation in evaluations.items()},
        "routing": None if routing is None else routing.as_dict(),
        "settings": {name: str(value) for name, value in vars(arguments).items()},
        "versions": {name: version(name) for name in ("smat_peft", "torch", "peft", "transformers")},
    }
    write_text(folder / TABLES, tables("markdown"))
    write_text(folder / REPORT, json.dumps(report, indent=1))
    with replacing(folder / PICTURE) as path:
        plot_accuracies(evaluations, path)
    print(f"\n{tables('text')}\nEverything is in {folder}")
