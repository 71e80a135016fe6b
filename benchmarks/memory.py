"""Peak memory of training, and bytes on disk.

    python benchmarks/memory.py --model vit-small
    python benchmarks/memory.py --model vit-small --structured

Each peak is taken in a process of its own, over two updates, from a state in which weights, libraries and kernels are
loaded. The large episode, which takes minutes and so is run once, has 500 support and 500 query images, which pass in
chunks; it is compared with an episode of 50 and 50 that pass whole. What `--dry_run` of a run tells beforehand is set
against what an update then takes. On disk, a checkpoint of the baseline is what
METHOD 9 lists.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from baseline import Baseline
from measure import Peak, Row, compare, in_own_process, make_parser, peak_memory, report, start
from smat_peft import MetaTrainer
from smat_peft.experts.gates import GateGranularity
from smat_peft.meta_tuning.memory import kept_by_image, memory_of_update
from workloads import add_model_arguments, make_baseline, make_episodes, make_trainer, with_changes

Side = Literal["ours", "ours, structured", "baseline"]
UPDATES = 2  # the second has the momentum of the first
SMALLEST = {"layers": 1, "ways": 2, "shots": 1, "queries": 1}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser(__doc__, rounds=3, warmup=0)
    add_model_arguments(parser, "vit-small")
    parser.set_defaults(max_batch_size=32)
    parser.add_argument("--structured", action="store_true", help="Structured gates on our side.")
    parser.add_argument("--large_ways", type=int, default=50, help="Classes of the large episode.")
    parser.add_argument("--large_shots", type=int, default=10, help="Support images of each of its classes.")
    arguments = parser.parse_args(argv)

    ours: Side = "ours, structured" if arguments.structured else "ours"
    whole = with_changes(arguments, max_batch_size=None)
    large = with_changes(arguments, episodes=1, ways=arguments.large_ways, shots=arguments.large_shots)
    small = with_changes(whole, episodes=1, shots=2 * arguments.shots)
    chunked, unchunked = ([peak.total / 1e9 for peak in peaks(ours, a, rounds=1)] for a in (large, small))
    images = f"{large.ways * large.shots} support images in chunks / {small.ways * small.shots} whole"
    files = in_own_process(megabytes_of_ours, ours, whole)
    state = in_own_process(megabytes_of_baseline, whole)
    rows = [
        peak_of_an_update(whole, arguments.rounds, ours),
        told_beforehand(whole, ours),
        compare(f"peak memory in all: {images}", chunked, unchunked, unit="GB", ratio_is="ours / baseline"),
        *(compare(name, [size], [state], unit="MB", ratio_is="ours / baseline") for name, size in files.items()),
    ]
    report(rows, arguments)


def peak_of_an_update(arguments: argparse.Namespace, rounds: int, ours: Side = "ours") -> Row:
    """Peak memory above the weights, each side and each round in a process of its own."""
    above = {side: [peak.above / 1e9 for peak in peaks(side, arguments, rounds)] for side in (ours, "baseline")}
    name = "peak memory of an update above the weights"
    return compare(name, above[ours], above["baseline"], unit="GB", ratio_is="ours / baseline")


def told_beforehand(arguments: argparse.Namespace, ours: Side) -> Row:
    """Peak memory above the weights, told and measured."""
    told = in_own_process(tell, ours, arguments) / 1e9
    measured = peaks(ours, arguments, rounds=1)[0].above / 1e9
    return compare("the same: told beforehand / measured", [told], [measured], unit="GB", ratio_is="ours / baseline")


def tell(side: Side, arguments: argparse.Namespace) -> int:
    """Bytes that an update is said to take above the weights."""
    device = start(arguments)
    trainer = make_trainer(arguments, device, gates(side))
    episode = make_episodes(arguments, device)[0]
    kept, count = kept_by_image(trainer.learner, episode.support[:1]), len(episode.support) + len(episode.query)
    parts = memory_of_update(trainer.learner, trainer.groups, processes=1, count=count, kept=kept)
    return sum(size for name, size in parts.items() if name not in ("backbone", "adapter"))


def peaks(side: Side, arguments: argparse.Namespace, rounds: int) -> list[Peak]:
    """Peak memory of a side's updates, by round."""
    bar = tqdm(range(rounds), desc=f"Peak memory, {side}", unit="process", leave=False)
    return [in_own_process(peak_of_updates, side, arguments) for _ in bar]


def peak_of_updates(side: Side, arguments: argparse.Namespace) -> Peak:
    """Peak memory of a side's updates in this process."""
    device = start(arguments)

    def make(arguments: argparse.Namespace) -> Baseline | MetaTrainer:
        return make_baseline(arguments, device) if side == "baseline" else make_trainer(arguments, device, gates(side))

    smallest = with_changes(arguments, **SMALLEST)
    make(smallest).update(make_episodes(smallest, device))
    episodes, learner = make_episodes(arguments, device), make(arguments)
    return peak_memory(lambda: [learner.update(episodes) for _ in range(UPDATES)], device)


def gates(side: Side) -> GateGranularity:
    """What our side's gates are."""
    return "structured" if side == "ours, structured" else "element"


def megabytes_of_ours(side: Side, arguments: argparse.Namespace) -> dict[str, float]:
    """Sizes of a checkpoint and of an adapter after one update."""
    device = start(arguments)
    trainer = make_trainer(arguments, device, gates(side))
    trainer.update(make_episodes(arguments, device))
    with tempfile.TemporaryDirectory() as folder:
        trainer.arguments.output_dir = f"{folder}/checkpoint"
        trainer.save_checkpoint()
        trainer.save_model(f"{folder}/adapter")
        return {kind: megabytes(Path(folder, kind)) for kind in ("checkpoint", "adapter")}


def megabytes(folder: Path) -> float:
    """Size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def megabytes_of_baseline(arguments: argparse.Namespace) -> float:
    """Size of the baseline's checkpoint: backbone, delta, gates, router and the delta's momentum."""
    baseline = make_baseline(arguments, start(arguments))
    momentum = baseline.delta
    parts = (baseline.base, baseline.delta, baseline.gate_logits, momentum, baseline.router.state_dict())
    return sum(tensor.nbytes for part in parts for tensor in part.values()) / 1e6


if __name__ == "__main__":
    main()
