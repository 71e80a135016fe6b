"""The plan of a run, printed before its first update: what is learned, on what, and how long it takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from smat_peft.commands.protocol import shared_by
from smat_peft.episodes.images import ImageTransform
from smat_peft.episodes.sampling import EpisodeSampler
from smat_peft.evaluation.protocol import EvaluationDomain
from smat_peft.evaluation.records import ROLE_TITLES
from smat_peft.evaluation.tables import render_table
from smat_peft.meta_tuning.learner import MetaLearner
from smat_peft.meta_tuning.memory import kept_by_image, memory_of_update
from smat_peft.meta_tuning.trainer import MetaTrainer
from smat_peft.meta_tuning.trial import measure_seconds
from smat_peft.tuner.adapters import adapted_size

BYTES = 4  # what is learned is 32-bit


def format_plan(
    trainer: MetaTrainer,
    backbone: str,
    transform: ImageTransform,
    entries: Sequence[EvaluationDomain],
    measured: Sequence[EvaluationDomain],
    tested: int,
    threads: int,
) -> str:
    """The plan as text, with `measured` the domains to test on, `tested` episodes in all; it tries one update."""
    arguments, learner, accelerator = trainer.arguments, trainer.learner, trainer.accelerator
    learned = sum(parameter.numel() for parameter in trainer.groups.all().values())
    if isinstance(learner, MetaLearner):
        experts, size = learner.config.num_experts, adapted_size(learner.model)
        kind = f"{experts} {'expert' if experts == 1 else 'experts'} over {_count(size)} parameters"
    else:
        kind = "of another method"
    seconds = measure_seconds(trainer)
    left = (arguments.max_steps - trainer.step) * seconds
    precision = accelerator.mixed_precision
    lines = [
        f"Backbone   {backbone}, images {transform.size[1]} x {transform.size[0]}",
        f"Adapter    {kind}: {_count(learned)} learned values, {_bytes(BYTES * learned)}",
        f"Run        {arguments.max_steps} updates of {arguments.episodes_per_step} episodes, seed {arguments.seed}, "
        f"on {accelerator.num_processes} x {accelerator.device.type} with {threads} threads, precision {precision}",
        _memory(trainer, transform),
        f"Time       {seconds:.2f} s an update without loading images, {_duration(left)} for training; then "
        f"{tested} test episodes",
        "",
        _domain_table(entries),
    ]
    notes = _what_is_left_out(trainer, entries, measured) + _what_is_shared(trainer, entries)
    return "\n".join([*lines, "", *notes] if notes else lines)


def _memory(trainer: MetaTrainer, transform: ImageTransform) -> str:
    """What a process needs in an update of the largest episode."""
    accelerator, learner, episodes = trainer.accelerator, trainer.learner, trainer.train_episodes
    count = sum(episodes.largest) if isinstance(episodes, EpisodeSampler) else 0
    with accelerator.autocast():
        kept = kept_by_image(learner, torch.zeros(1, 3, *transform.size, device=accelerator.device))
    parts = memory_of_update(learner, trainer.groups, processes=accelerator.num_processes, count=count, kept=kept)
    named = ", ".join(f"{name} {_bytes(size)}" for name, size in parts.items())
    return f"Memory     {_bytes(sum(parts.values()))} a process, libraries aside: {named} of {count} images"


def _what_is_left_out(
    trainer: MetaTrainer, entries: Sequence[EvaluationDomain], measured: Sequence[EvaluationDomain]
) -> list[str]:
    notes = []
    if not trainer.validation_episodes or not trainer.arguments.validation_steps:
        notes.append("There is no validation: the adapter of the last update is kept, whether or not it is the best.")
    names = [entry.domain.name for entry in measured]
    left_out = [entry.domain.name for entry in entries if entry.domain.name not in names]
    if left_out:
        notes.append(f"Not tested on {', '.join(left_out)}: too few test classes for an episode, or none are wanted.")
    return notes


def _what_is_shared(trainer: MetaTrainer, entries: Sequence[EvaluationDomain]) -> list[str]:
    if not trainer.accelerator.is_main_process:  # the only one that prints
        return []
    return [f"Warning: {sentence}" for sentence in shared_by(entries)]


def _domain_table(entries: Sequence[EvaluationDomain]) -> str:
    rows = []
    for entry in entries:
        role, domain, split = entry[:3]
        counts = [len(images) for images in domain.class_images.values()]
        classes = [
            str(len(domain.classes(part))) if role == "id" else ("all" if part == "test" else "-")
            for part in ("train", "validation", "test")
        ]
        images = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)}-{max(counts)}"
        ways, shots = (number or "varied" for number in (entry.ways, entry.shots))
        cells = [domain.name, ROLE_TITLES[role], str(len(domain.classes(split))), "/".join(classes), images]
        rows.append([*cells, f"{ways}/{shots}"])
    titles = ["domain", "role", "test classes", "train/validation/test", "images a class", "ways/shots"]
    return render_table(titles, rows, "<<>>>>", "text")


def _count(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number / 1e3:.1f} k"


def _bytes(number: int) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
