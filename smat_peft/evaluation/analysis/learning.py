"""How good runs were after how many training tasks, by the checkpoints that they kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from torch import nn
from tqdm.auto import tqdm

from smat_peft.errors import CheckpointError
from smat_peft.evaluation.analysis.pictures import COLOURS, MARKERS, picture
from smat_peft.evaluation.predictors import BACKBONE, Predictor, prototype_predictor
from smat_peft.evaluation.protocol import EvaluationDomain, evaluate
from smat_peft.evaluation.records import ROLE_TITLES, Role
from smat_peft.evaluation.statistics import Estimate
from smat_peft.evaluation.tables import render_table
from smat_peft.files import sha256_of
from smat_peft.meta_tuning.checkpoints import MANIFEST, checkpoints
from smat_peft.meta_tuning.learned import load_learned

KEEP_CHECKPOINTS = "--save_total_limit 0 --checkpointing_steps 20"
LINES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy of a run over training, averaged over the domains of each role.

    Attributes:
        label: What the run is called.
        tasks: Number of training tasks seen, 0 first: the backbone as it was.
        accuracy: Shares from 0 to 1 after so many tasks, by role.
    """

    label: str
    tasks: list[int]
    accuracy: Mapping[Role, list[Estimate]]

    def first_at(self, role: Role, level: float) -> int | None:
        """The number of training tasks at which the mean is first at a level, or None where it never is."""
        means = (estimate.mean for estimate in self.accuracy[role])
        return next((tasks for tasks, mean in zip(self.tasks, means, strict=True) if mean >= level), None)


@dataclass(frozen=True)
class Reached:
    """When runs are at the accuracy that one of them ends with.

    Attributes:
        end_of: Label of that one.
        role: Of the domains.
        level: Its last mean accuracy, a share from 0 to 1.
        tasks: Number of training tasks at which each run is first there, by label; None where it never is.
    """

    end_of: str
    role: Role
    level: float
    tasks: dict[str, int | None]


def measure_learning_curve(
    label: str,
    model: nn.Module,
    run_dir: Path,
    domains: Sequence[EvaluationDomain],
    *,
    settings: Mapping[str, Any],
    **episodes: Any,
) -> LearningCurve:
    """Evaluate all checkpoints of a run on the same episodes, without a gradient step (METHOD 6).

    Args:
        label: What to call the run.
        model: Its backbone with its adapter, whose values are overwritten.
        run_dir: The run's output directory.
        domains: Domains to measure: of validation classes and dev-OOD.
        settings: What the records depend on beside the checkpoint: the backbone.
        episodes: Further arguments of [`evaluate`]. With its `output_dir` what was measured is not measured again; nor
            is the backbone, for another run.

    Raises:
        CheckpointError: There are no checkpoints, or not of this adapter.
    """
    folders = checkpoints(run_dir)
    if not folders:
        raise CheckpointError(f"{run_dir} holds no checkpoints; train with {KEEP_CHECKPOINTS}")

    def measure(name: str, predictor: Predictor, **made_of: str) -> dict[Role, Estimate]:
        own = {**settings, **made_of}
        evaluation = evaluate({name: predictor}, domains, progress=False, settings=own, **episodes)
        return {role: evaluation.average_accuracy(name, role) for role in evaluation.roles}

    with tqdm(total=1 + len(folders), desc=f"checkpoints of {label}", unit="checkpoint", disable=None) as bar:
        tasks, measured = [0], [measure(BACKBONE, prototype_predictor(model, "none"))]
        for folder in folders:
            bar.update()
            tasks.append(load_learned(model, folder))
            measured.append(
                measure(f"{label} {folder.name}", prototype_predictor(model), checkpoint=sha256_of(folder / MANIFEST))
            )
        bar.update()
    return LearningCurve(label, tasks, {role: [each[role] for each in measured] for role in measured[0]})


def reached(curves: Sequence[LearningCurve]) -> list[Reached]:
    """When each run is first at the accuracy that each other one ends with, by role."""
    return [
        Reached(end.label, role, level, {curve.label: curve.first_at(role, level) for curve in curves})
        for end in curves
        for role in end.accuracy
        for level in [end.accuracy[role][-1].mean]
    ]


def reached_table(levels: Sequence[Reached]) -> str:
    """A row for each level, a column for each run."""
    labels = list(levels[0].tasks)
    rows = [
        [f"{level.end_of}, {ROLE_TITLES[level.role]}", f"{100 * level.level:.1f}"]
        + ["not reached" if tasks is None else str(tasks) for tasks in level.tasks.values()]
        for level in levels
    ]
    return render_table(["training tasks until the end of", "%", *labels], rows, "<>" + ">" * len(labels), "markdown")


def draw_learning_curves(curves: Sequence[LearningCurve], path: Path) -> None:
    """Accuracy with its 95 % interval over the number of training tasks, a panel for each role."""
    roles = list(curves[0].accuracy)
    with picture(path, height=3.0) as figure:
        panels = figure.subplots(1, len(roles), squeeze=False)[0]
        for role, axes in zip(roles, panels, strict=True):
            for number, curve in enumerate(curves):
                colour = COLOURS[number % len(COLOURS)]
                estimates = curve.accuracy[role]
                mean, low, high = (
                    100 * np.array([getattr(estimate, name) for estimate in estimates])
                    for name in ("mean", "low", "high")
                )
                style, marker = LINES[number % len(LINES)], MARKERS[number % len(MARKERS)]
                axes.fill_between(curve.tasks, low, high, color=colour, alpha=0.12, linewidth=0)
                axes.plot(curve.tasks, mean, style, marker=marker, color=colour, markersize=3.5, label=curve.label)
            axes.axhline(mean[0], color="grey", linewidth=0.8, linestyle=":", label="backbone")
            name = "ID, validation classes" if role == "id" else ROLE_TITLES[role]
            axes.set(title=name, xlabel="training tasks", ylabel="query accuracy, %")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.grid(alpha=0.3)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)))
