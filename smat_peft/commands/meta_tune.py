r"""Meta-tune an adapter over many few-shot tasks, evaluate it, and leave it in a folder.

Without arguments this is the demo: the packaged backbone and the built-in images, in a few minutes on two CPU cores:

    accelerate launch examples/meta_tune.py

Any vision model of the Hub on folders of one's own images (each a domain with a folder for each class):

    accelerate launch examples/meta_tune.py --model_name_or_path facebook/dinov2-small \
        --train_domains "folder:data/train/*" --ood_domains "folder:data/other/*" --output_dir outputs/mine

YAML files of arguments may come first. Arguments on the command line go before theirs, and a later file's before an
earlier one's, so that a protocol (which domains, which test episodes) and settings of training combine:

    accelerate launch examples/meta_tune.py recipes/demo.yaml --seed 1 --output_dir outputs/seed-1
    accelerate launch examples/meta_tune.py recipes/meta_dataset.yaml recipes/dino_vits16.yaml --data_root DATA
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import PeftModel, get_peft_model
from transformers import HfArgumentParser

from smat_peft.assets import DEMO_RECIPE
from smat_peft.commands.arguments import Arguments, DataArguments, LaunchArguments, ModelArguments, SharingArguments
from smat_peft.commands.checks import check_image_size, list_left_out, make_output_dir
from smat_peft.commands.console import HelpFormatter, run_command
from smat_peft.commands.methods import METHODS
from smat_peft.commands.plan import format_plan
from smat_peft.commands.protocol import check_training, load_protocol, with_enough_classes
from smat_peft.commands.recipe import leading_recipes, recipe_words
from smat_peft.commands.replay import check_replay, format_replay
from smat_peft.commands.results import refuse_to_overwrite, write_curves, write_results
from smat_peft.commands.share import Sharing
from smat_peft.episodes.cache import ImageCache
from smat_peft.episodes.fixed import FixedEpisodes
from smat_peft.episodes.images import ImageTransform, load_image_transform
from smat_peft.episodes.sampling import EpisodeSampler
from smat_peft.errors import ConfigurationError
from smat_peft.evaluation.fitting import mean_accuracy
from smat_peft.evaluation.predictors import BACKBONE, default_predictors, mean_expert_weights, prototype_predictor
from smat_peft.evaluation.protocol import EvaluationDomain, evaluate
from smat_peft.evaluation.records import Evaluation
from smat_peft.evaluation.report import format_report
from smat_peft.few_shot.loading import load_adapter, load_backbone
from smat_peft.meta_tuning.arguments import MetaTuningArguments
from smat_peft.meta_tuning.checkpoints import refuse_other_run
from smat_peft.meta_tuning.lock import output_lock
from smat_peft.meta_tuning.processes import create_accelerator
from smat_peft.meta_tuning.trainer import MetaTrainer


def parse(argv: Sequence[str]) -> Arguments:
    """Arguments from YAML files named first, a later one before an earlier, then the rest; the demo's if none."""
    parser = HfArgumentParser(
        (MetaTuningArguments, ModelArguments, DataArguments, LaunchArguments, SharingArguments),
        description=__doc__,
        formatter_class=HelpFormatter,
        prog="meta_tune",
        usage="%(prog)s [RECIPE.yaml ...] [--argument value ...]",
    )
    recipes, words = leading_recipes(argv)
    if not recipes and not parser.parse_known_args(words)[0].train_domains:
        recipes = [DEMO_RECIPE]
    ahead = recipe_words(recipes, parser)
    method = METHODS[parser.parse_known_args(ahead + words)[0].method]
    *parts, unknown = parser.parse_args_into_dataclasses(ahead + method.words + words, return_remaining_strings=True)
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    return Arguments(*parts)


def meta_tune(argv: Sequence[str]) -> None:
    """Plan, train, save, evaluate, report; from the first look at the output directory to the last, it is locked."""
    every = parse(argv)
    output_dir = Path(every.meta_tuning.output_dir)
    sharing = Sharing(every.sharing, output_dir)
    accelerator = _create_accelerator(every.launch, output_dir)
    with ExitStack() as held:
        if accelerator.is_main_process and output_dir.is_dir() and not every.launch.dry_run:
            held.enter_context(output_lock(output_dir))
        _meta_tune(every, sharing, accelerator, held)


def _meta_tune(every: Arguments, sharing: Sharing, accelerator: Accelerator, held: ExitStack) -> None:
    arguments, model_arguments, data, launch, _ = every
    output_dir = sharing.output_dir
    check_replay(launch.replay_episodes)
    if not (arguments.resume_from_checkpoint or launch.dry_run):
        refuse_other_run(output_dir)
        refuse_to_overwrite(output_dir)
    threads = launch.threads or max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    set_seed(arguments.seed)

    entries = load_protocol(data)
    check_training(entries)
    model = _create_model(model_arguments)
    sharing.check_model(model)
    transform = load_image_transform(model_arguments.model_name_or_path, data.image_size)
    check_image_size(model, transform, model_arguments.model_name_or_path)
    cache = ImageCache(arguments.dataloader_cache_mib)
    train, validation, development = _create_episodes(entries, data, arguments, transform, cache)
    if METHODS[model_arguments.method].finish and not len(validation) + len(development):
        raise ConfigurationError(f"--method {model_arguments.method} needs --validation_episodes to choose by")
    measured = with_enough_classes(entries) if data.evaluation_episodes else []
    trainer = MetaTrainer(model, arguments, train, validation, accelerator=accelerator)
    if launch.replay_episodes:
        accelerator.print(format_replay(trainer, launch.replay_episodes))
        return
    tested = data.evaluation_episodes * len(measured)
    plan = format_plan(trainer, model_arguments.model_name_or_path, transform, entries, measured, tested, threads)
    accelerator.print(plan)
    if launch.dry_run:
        return

    make_output_dir(output_dir)
    if accelerator.is_main_process:
        held.enter_context(output_lock(output_dir))
        list_left_out(output_dir, (entry.domain for entry in entries))
        sharing.open_repositories()
    if launch.report_to:
        settings = vars(arguments) | vars(model_arguments) | vars(data)
        accelerator.init_trackers("smat_peft", {name: str(value) for name, value in settings.items()})
    trainer.train()
    accelerator.end_training()  # the other processes need not wait for what follows
    if accelerator.is_main_process:
        trained = time.perf_counter()
        figures = _finish(model, model_arguments, validation, development)
        figures["training_seconds"] = trainer.seconds + time.perf_counter() - trained
        trainer.save_model()
        write_curves(trainer, output_dir)
        evaluation = _evaluate(model, measured, data, model_arguments, transform, validation, cache)
        if evaluation is not None:
            accelerator.print("\n" + format_report(evaluation))
        origins = {entry.domain.name: entry.domain.origin for entry in measured}
        notes = {output_dir: ""} | sharing.pack(model, validation)
        write_results(sharing, model, every, trainer, evaluation, figures, origins, notes)
        sharing.save_merged(model, transform, model_arguments.model_name_or_path)
        accelerator.print(f"\nEverything is in {output_dir}")
        for address in sharing.push():
            accelerator.print(f"Pushed to {address}")


def _create_accelerator(launch: LaunchArguments, output_dir: Path) -> Accelerator:
    try:
        return create_accelerator(
            mixed_precision=launch.mixed_precision, log_with=launch.report_to or None, project_dir=str(output_dir)
        )
    except ValueError as error:  # such as half precision on a device that has none
        raise ConfigurationError(f"--mixed_precision {launch.mixed_precision}: {error}") from error


def _create_model(arguments: ModelArguments) -> PeftModel:
    backbone = load_backbone(arguments.model_name_or_path)
    if any(parameter.itemsize < torch.float32.itemsize for parameter in backbone.parameters()):
        backbone = backbone.float()  # steps from half precision would round away; --mixed_precision is for passes
    if arguments.adapter_name_or_path is not None:
        return load_adapter(backbone, arguments.adapter_name_or_path, is_trainable=True)
    return get_peft_model(backbone, METHODS[arguments.method].adapter(backbone, arguments))


def _create_episodes(
    entries: Sequence[EvaluationDomain],
    data: DataArguments,
    arguments: MetaTuningArguments,
    transform: ImageTransform,
    cache: ImageCache,
) -> tuple[EpisodeSampler, FixedEpisodes, FixedEpisodes]:
    """Episodes to train on, and those that choices are made on: of the validation classes, and of dev-OOD domains."""
    domains, unseen = ([entry.domain for entry in entries if entry.role == role] for role in ("id", "dev_ood"))
    common: dict[str, Any] = {
        "max_ways": data.max_ways,
        "max_support": data.max_support,
        "transform": transform,
        "cache": cache,
    }
    weights = data.weights_of_domains()
    train = EpisodeSampler(
        domains, "train", data.ways, data.shots, data.queries, arguments.seed, domain_weights=weights, **common
    )
    shape: dict[str, Any] = {"ways": data.evaluation_ways, "shots": data.evaluation_shots, "queries": data.queries}
    validation = FixedEpisodes(domains, "validation", data.validation_episodes, seed=0, **shape, **common)
    return train, validation, FixedEpisodes(unseen, "all", data.validation_episodes, seed=0, **shape, **common)


def _finish(
    model: PeftModel, arguments: ModelArguments, validation: FixedEpisodes, development: FixedEpisodes
) -> dict[str, float]:
    """What the method does after training, and the accuracies by which choices are made: never those of a test."""

    def accuracies() -> dict[str, float]:
        predict = prototype_predictor(model)
        named = {"validation": validation, "dev_ood": development}
        return {name: mean_accuracy(predict, episodes) for name, episodes in named.items() if len(episodes)}

    def score() -> float:
        return statistics.fmean(accuracies().values())

    finish = METHODS[arguments.method].finish
    figures = {} if finish is None else finish(model, arguments, score)
    return figures | {f"{name}_accuracy": value for name, value in accuracies().items()}


def _evaluate(
    model: PeftModel,
    measured: Sequence[EvaluationDomain],
    data: DataArguments,
    arguments: ModelArguments,
    transform: ImageTransform,
    validation: FixedEpisodes,
    cache: ImageCache,
) -> Evaluation | None:
    if not measured:
        return None
    if arguments.method == "smat":
        mean = mean_expert_weights(model, validation) if len(validation) else None
        predictors = default_predictors(model, mean_experts=mean)
    else:
        predictors = {BACKBONE: prototype_predictor(model, "none"), arguments.method: prototype_predictor(model)}
    return evaluate(
        predictors,
        measured,
        transform=transform,
        episodes=data.evaluation_episodes,
        seed=data.evaluation_seed,
        cache=cache,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(meta_tune, sys.argv[1:] if argv is None else argv)
