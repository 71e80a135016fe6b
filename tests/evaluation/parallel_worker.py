"""What each process of test_parallel.py does: its share of an evaluation, then the records of all.

torchrun --nproc_per_node 2 tests/evaluation/parallel_worker.py OUTPUT.json RECORDS_DIR
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).parents[2]))
from smat_peft import Episode, evaluate
from smat_peft.episodes.fixed import FixedEpisodes
from smat_peft.evaluation import Evaluation, default_predictors
from smat_peft.evaluation.processes import spread
from tests.evaluation.small import TRANSFORM, make_domain, undecided, with_experts
from tests.small_models import make_vit


def run(accelerator: Accelerator | None, output_dir: Path | None) -> tuple[Evaluation, int]:
    """An evaluation over two domains, and how many episodes this process has seen."""
    model = with_experts(make_vit())
    domains = [("id", make_domain("a"), "all"), ("test_ood", make_domain("b", seed=1), "all")]
    validation = FixedEpisodes([make_domain("v", seed=2)], "all", 3, transform=TRANSFORM)
    seen = 0

    def count(episode: Episode) -> torch.Tensor:
        nonlocal seen
        seen += 1
        return undecided(episode)

    evaluation = evaluate(
        {**default_predictors(model), "nothing": count},
        domains,
        transform=TRANSFORM,
        episodes=19,
        validation=validation,
        progress=False,
        accelerator=accelerator,
        output_dir=output_dir,
    )
    return evaluation, seen


def main() -> None:
    torch.set_num_threads(1)
    output, records_dir = map(Path, sys.argv[1:])
    accelerator = Accelerator()
    evaluation, seen = run(accelerator, records_dir)
    report = {
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "seen": seen,
        "squares": spread(lambda number: number * number, range(5), accelerator),
        "records": [asdict(record) for record in evaluation.records],
        "temperatures": dict(evaluation.temperatures),
        "errors": {" ".join(key): value.before.error for key, value in evaluation.calibration.items()},
    }
    output.with_suffix(f".{accelerator.process_index}.json").write_text(json.dumps(report))
    accelerator.end_training()


if __name__ == "__main__":
    main()
