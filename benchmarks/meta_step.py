"""Time and memory of one whole update of meta-tuning: four episodes with everything, optimisers included.

    python benchmarks/meta_step.py --model vit-small

Three figures: seconds of an episode against the baseline's; the seconds of the backbone passes that must remain (3 of
the query and 2 of the support forward, 2 of each backward) as a share of ours; and peak memory above the weights, each
side in a process of its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch.func import functional_call
from transformers import ViTModel

from baseline import Baseline
from measure import compare, interleave, make_parser, report, start, sums
from memory import peak_of_an_update
from smat_peft import Episode, MetaTrainer
from smat_peft.tuner.class_token import class_token_alone
from workloads import (
    add_model_arguments,
    copy_state_,
    make_backbone,
    make_baseline,
    make_episodes,
    make_trainer,
    seconds_to_compile,
)

SAME_LOSS = {"fp32": 1e-3, "bf16": 5e-2}  # relative; above it the two sides do not compute the same


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser(__doc__)
    add_model_arguments(parser, "vit-small")
    parser.add_argument("--memory_rounds", type=int, default=3, help="Processes a side to take the peak of; 0: none.")
    arguments = parser.parse_args(argv)
    device = start(arguments)

    episodes = make_episodes(arguments, device)
    compiling = seconds_to_compile(arguments, device, arguments.episodes) if arguments.torch_compile else 0.0
    trainer, baseline = make_trainer(arguments, device), make_baseline(arguments, device)
    copy_state_(baseline, trainer)
    check_same_loss(trainer, baseline, episodes, SAME_LOSS[arguments.dtype])
    backbone = make_backbone(arguments.model, arguments.layers).to(device)
    sides = {
        "ours": lambda: trainer.update(episodes),
        "baseline": lambda: baseline.update(episodes),
        "passes": lambda: necessary_passes(backbone, episodes, arguments.dtype),
    }
    measured = interleave(sides, device, rounds=arguments.rounds, warmup=arguments.warmup)
    ours, theirs, passes = ([s / len(episodes) for s in sums(measured[side])] for side in sides)
    assert not trainer.skipped, "an update was left out: what was timed is not a whole one"
    rows = [
        compare("episode", ours, theirs),
        compare("episode, of which passes that must remain", passes, ours, ratio_is="ours / baseline"),
    ]

    if arguments.memory_rounds:
        rows.append(peak_of_an_update(arguments, arguments.memory_rounds))
    rate = 1 / statistics.median(ours)
    report(rows, arguments, parameters=baseline.size, episodes_per_second=rate, seconds_to_compile=compiling)


def necessary_passes(backbone: ViTModel, episodes: Sequence[Episode], dtype: str) -> None:
    """The backbone passes of an update alone, as far as the feature needs them, with gradients to all weights."""
    weights = {name: parameter.detach().requires_grad_() for name, parameter in backbone.named_parameters()}
    device_type = next(backbone.parameters()).device.type

    def features(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device_type, torch.bfloat16, enabled=dtype == "bf16"), class_token_alone(backbone):
            return functional_call(backbone, weights, images, {"interpolate_pos_encoding": True}).last_hidden_state[
                :, 0
            ]

    for episode in episodes:
        with torch.no_grad():
            features(torch.cat([episode.support, episode.query]))
        for images in (episode.support, episode.query):
            graph = features(images).sum()
            torch.autograd.grad(graph, list(weights.values()), retain_graph=True)
            torch.autograd.grad(graph, list(weights.values()))
        with torch.no_grad():
            features(episode.query)


def check_same_loss(trainer: MetaTrainer, baseline: Baseline, episodes: Sequence[Episode], tolerance: float) -> None:
    """Stop unless both sides have the same loss before they are timed."""
    noise = torch.rand(len(episodes), len(baseline.multipliers), device=baseline.device)
    with trainer.accelerator.autocast():
        ours = sum(term.item() for term in trainer.learner(episodes, noise).values())
    pairs = zip(episodes, noise, strict=True)
    theirs = sum(term.item() for episode, uniform in pairs for term in baseline.episode(episode, uniform).values())
    if abs(ours - theirs) > tolerance * abs(theirs):
        raise SystemExit(f"the two sides differ: a loss of {ours:.6f} here, of {theirs:.6f} in the baseline")


if __name__ == "__main__":
    main()
