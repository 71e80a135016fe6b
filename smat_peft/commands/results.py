"""What a run leaves beside its adapter: figures, curves, and a card in the folder of each of its forms."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft import PeftModel

from smat_peft.assets import DEMO_BACKBONE
from smat_peft.commands.arguments import Arguments
from smat_peft.commands.share import Sharing
from smat_peft.errors import CheckpointError
from smat_peft.evaluation.plots import plot_curves
from smat_peft.evaluation.predictors import SMAT
from smat_peft.evaluation.records import Evaluation
from smat_peft.evaluation.report import format_report, report_as_dict
from smat_peft.files import replacing, write_text
from smat_peft.meta_tuning.trainer import MetaTrainer
from smat_peft.sharing.eval_results import write_eval_results
from smat_peft.sharing.model_card import write_model_card
from smat_peft.tuner.adapters import has_experts, merged_sparsity, sparsity

CARD, METRICS, CURVES = "README.md", "metrics.json", "curves.png"
DEMO_NOTE = "This is the demo's adapter: it is for small pictures of letters and signs, not for photographs."
LIBRARIES = ("smat_peft", "torch", "peft", "transformers", "accelerate")


def refuse_to_overwrite(output_dir: Path) -> None:
    """Raise a CheckpointError where a new run would write over a file that is there."""
    for name in (CARD, METRICS, CURVES):
        if (output_dir / name).exists():
            raise CheckpointError(f"{output_dir / name} would be overwritten; choose another --output_dir")


def write_curves(trainer: MetaTrainer, output_dir: Path) -> None:
    """Draw the run's curves, where it has any: at once, for what follows takes longer."""
    if trainer.log:
        with replacing(output_dir / CURVES) as path:
            plot_curves(trainer.log, path)


def write_results(
    sharing: Sharing,
    model: PeftModel,
    arguments: Arguments,
    trainer: MetaTrainer,
    evaluation: Evaluation | None,
    figures: dict[str, float],
    origins: dict[str, str],
    notes: dict[Path, str],
) -> None:
    """Write figures and cards.

    Args:
        sharing: Knows the output directory, and what its folders are called on the Hub.
        model: The model with the adapter.
        arguments: Of the command.
        trainer: Has done the run.
        evaluation: Of the adapter, if there was one.
        figures: To be written down beside those that all runs have.
        origins: By domain, the specification that it was loaded by.
        notes: The folders that get a card, and what it is to say beside the rest.
    """
    output_dir = sharing.output_dir
    settings: dict[str, Any] = {name: value for part in arguments[:-1] for name, value in vars(part).items()}
    report = {} if evaluation is None else report_as_dict(evaluation)
    closed: list[float] = []
    if has_experts(model):
        closed = sparsity(model, training=False).tolist()
        figures = figures | {"merged_sparsity": merged_sparsity(model)}
    results = {
        "settings": settings,
        "evaluation": report,
        "sparsity": closed,
        **figures,
        "skipped_updates": trainer.skipped,
        "versions": {name: version(name) for name in LIBRARIES},
        "log": trainer.log,
    }
    write_text(output_dir / METRICS, json.dumps(results, indent=1))
    if not has_experts(model):
        return  # PEFT has left its own card
    base_model, method = arguments.model.model_name_or_path, arguments.model.method
    measured = report.get("domains", {}).items()
    accuracies = {name: found["accuracy"][SMAT if method == "smat" else method] for name, found in measured}
    write_eval_results(output_dir, accuracies, origins)
    warning = DEMO_NOTE if base_model == DEMO_BACKBONE else ""
    for folder, note in notes.items():
        write_model_card(
            folder,
            name=sharing.name_of(folder),
            base_model=base_model,
            table_markdown="Not evaluated." if evaluation is None else format_report(evaluation, "markdown"),
            metrics={name: accuracy["mean"] for name, accuracy in accuracies.items()},
            origins=origins,
            image_size=arguments.data.image_size,
            license=sharing.arguments.license,
            datasets=sharing.arguments.datasets,
            settings=settings,
            sparsity=closed,
            note="\n\n".join(filter(None, (warning, note))),
        )
