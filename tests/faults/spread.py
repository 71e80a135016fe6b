"""The demo in one process and in several: how far apart the adapters are, and whether they answer alike.

    python tests/faults/spread.py                           # 20 updates in 1, 2 and 4 processes

Gates are compared as they are evaluated, and task weights by what an even mix of the experts adds to the backbone. The
exit status says whether delta and task weights are within 1e-4 (norms of differences over norms) and all answers alike.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))
from smat_peft import load_domain
from smat_peft.assets import DEMO_RECIPE, demo_backbone
from smat_peft.episodes.fixed import FixedEpisodes
from smat_peft.episodes.images import ImageTransform
from smat_peft.evaluation.predictors import prototype_predictor
from smat_peft.few_shot.loading import load_backbone
from smat_peft.tuner.adapters import smat_layers
from smat_peft.tuner.merging import evaluated_gates
from tests.processes import launch

LIMIT = 1e-4
SETTINGS = ("--validation_episodes=2", "--evaluation_episodes=0", "--threads=1")


def train(processes: int, updates: int, folder: Path) -> None:
    """Run the demo's recipe in so many processes."""
    words = [DEMO_RECIPE, f"--output_dir={folder}", f"--max_steps={updates}", f"--validation_steps={updates}"]
    ended = launch(processes, "-m", "smat_peft.meta_tune", *words, *SETTINGS)
    assert f"on {processes} x cpu" in ended.stdout, ended.stderr[-2000:]
    assert ended.returncode == 0, ended.stderr[-2000:]


@torch.no_grad()
def look(folder: Path, episodes: FixedEpisodes) -> dict[str, Tensor]:
    """What a run has left: its delta, its gates, what they add to the backbone, and its answers."""
    backbone = dict(load_backbone(demo_backbone()).named_parameters())
    model = PeftModel.from_pretrained(load_backbone(demo_backbone()), folder).eval()
    layers = smat_layers(model)
    count = model.peft_config["default"].num_experts
    merged = model.interpolate(torch.full((count,), 1 / count))
    found: dict[str, list[Tensor]] = {
        "delta": [delta for layer in layers for delta in layer.smat_delta["default"].parameters()],
        "gates": [values for _, _, values in evaluated_gates(layers, "default")],
        "task weights": [weight - backbone[name] for name, weight in merged.items()],
    }
    answer = prototype_predictor(model)
    found["answers"] = [answer(episode).logits.argmax(1) for episode in episodes]
    return {name: torch.cat([tensor.flatten().double() for tensor in tensors]) for name, tensors in found.items()}


def main() -> int:
    """Train, compare and print; the exit status says whether all is within the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4], help="Besides one.")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--episodes", type=int, default=10, help="Of each dev-OOD domain, to answer.")
    parser.add_argument("--folder", type=Path, default=Path("outputs/spread"), help="Emptied before and left after.")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    domains = [load_domain(f"builtin:{name}") for name in ("hebrew", "arrows", "emblems", "minerals")]
    shape: dict[str, Any] = {"ways": 5, "shots": 1, "queries": 5}
    episodes = FixedEpisodes(domains, "test", arguments.episodes, transform=ImageTransform((32, 32)), **shape)
    left = {}
    for processes in (1, *arguments.processes):
        train(processes, arguments.updates, arguments.folder / str(processes))
        left[processes] = look(arguments.folder / str(processes), episodes)

    same = True
    for processes in arguments.processes:
        ours, alone = left[processes], left[1]
        apart = {name: float((ours[name] - alone[name]).norm() / alone[name].norm()) for name in alone}
        answers = int((ours["answers"] != alone["answers"]).sum())
        same &= answers == 0 and max(apart["delta"], apart["task weights"]) < LIMIT
        figures = ", ".join(f"{name} {apart[name]:.1e}" for name in ("delta", "gates", "task weights"))
        print(
            f"{processes} processes and one, after {arguments.updates} updates: {figures} apart; {answers} of "
            f"{len(alone['answers'])} answers differ"
        )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
