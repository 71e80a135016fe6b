"""Which learning rate to fine-tune with: the best of a grid on labelled tasks, or on parts of a support set itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from smat_peft.episodes.episode import Episode
from smat_peft.errors import NotFiniteError
from smat_peft.few_shot.adaptation import adapt_to_support, classify_episode
from smat_peft.few_shot.backbone import DEFAULT_BATCH_SIZE
from smat_peft.few_shot.fine_tuning import Adaptation
from smat_peft.few_shot.mixing import ExpertMix, mix_experts

RATES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3)  # of full fine-tuning; at 0 the prototypes stay as they are
LORA_FACTOR = 10  # LoRA's rates to those of full fine-tuning, METHOD 11c
DEFAULT_RATE = 1e-5  # where a support set is too small to choose by: larger ones lose on the suite's dev-OOD domains
MOST_PARTS = 5  # of a support set that are left out in turn
TIMED_STEPS = 2

Tell = Callable[[float], None]
"""Is told how many seconds a search will take, before it begins."""


def default_learning_rate(kind: str) -> float:
    """The rate to take where there is nothing to choose it by."""
    return DEFAULT_RATE * _factor(kind)


def search_learning_rate(
    model: nn.Module,
    episodes: Sequence[Episode],
    adaptation: Adaptation,
    *,
    experts: ExpertMix = "routed",
    batch_size: int = DEFAULT_BATCH_SIZE,
    rates: Sequence[float] = RATES,
    tell: Tell | None = None,
) -> float:
    """The rate of the grid with the best mean accuracy on the queries of some tasks; the smallest of equals.

    Args:
        model: A backbone, with or without experts; it comes back as it was.
        episodes: Tasks whose query labels may be used: of validation domains, say.
        adaptation: How to fine-tune; its own learning rate does not matter.
        experts: How to mix the experts.
        batch_size: Images that go through the backbone at a time.
        rates: The grid, of full fine-tuning, from small to large; LoRA's is ten times as high (METHOD 11c).
        tell: Is told the seconds that this will take, as measured by a few steps on the first task.
    """
    if tell is not None:
        seconds = seconds_of_a_step(model, episodes[0], adaptation, batch_size)
        tell(seconds * adaptation.steps * sum(rate > 0 for rate in rates) * len(episodes))
    grid = [rate * _factor(adaptation.kind) for rate in rates]
    accuracy = dict.fromkeys(grid, 0.0)
    for episode in episodes:
        support, labels = episode.support, episode.support_labels
        merged = mix_experts(model, support, labels, experts, batch_size=batch_size)
        for rate in grid:
            tried = replace(adaptation, learning_rate=rate)
            try:
                logits, _ = classify_episode(
                    model, support, labels, episode.query, experts=merged, adaptation=tried, batch_size=batch_size
                )
            except NotFiniteError:
                if rate == 0:  # it is not the rate
                    raise
                continue
            accuracy[rate] += float((logits.argmax(-1).cpu() == episode.query_labels.cpu()).double().mean())
    return max(grid, key=lambda rate: accuracy[rate])


def choose_learning_rate(
    model: nn.Module,
    support: Float[Tensor, "N 3 H W"],
    labels: Int[Tensor, " N"],
    adaptation: Adaptation,
    *,
    experts: ExpertMix = "routed",
    batch_size: int = DEFAULT_BATCH_SIZE,
    tell: Tell | None = None,
) -> float:
    """The rate that classifies images of a support set best when they are left out of it.

    In turn one image of each class is left out, at most five times; classes of a single image stay in and are not
    scored. Where fewer than two classes have a second image, it is [`default_learning_rate`].
    """
    episodes = left_out_episodes(support, labels)
    if not episodes:
        return default_learning_rate(adaptation.kind)
    return search_learning_rate(model, episodes, adaptation, experts=experts, batch_size=batch_size, tell=tell)


def left_out_episodes(support: Float[Tensor, "N 3 H W"], labels: Int[Tensor, " N"]) -> list[Episode]:
    """Parts of a support set as tasks: the first image of each class is the query, then the second, and so on.

    The last image of a class is never taken away, and a query has at least two classes.
    """
    of_class = [torch.nonzero(labels == label).flatten() for label in range(int(labels.max()) + 1)]
    episodes = []
    for turn in range(MOST_PARTS):
        queries = [images[turn] for images in of_class if len(images) > max(turn, 1)]
        if len(queries) < 2:
            break
        left_out = torch.zeros_like(labels, dtype=torch.bool)
        left_out[torch.stack(queries)] = True
        episodes.append(
            Episode(
                support=support[~left_out],
                support_labels=labels[~left_out],
                query=support[left_out],
                query_labels=labels[left_out],
                index=turn,
            )
        )
    return episodes


def seconds_of_a_step(model: nn.Module, episode: Episode, adaptation: Adaptation, batch_size: int) -> float:
    """How long a step of fine-tuning takes, by a few on a task's support that change nothing worth a mention."""
    started = time.perf_counter()
    few = replace(adaptation, steps=TIMED_STEPS, learning_rate=1e-9)
    adapt_to_support(
        model, episode.support, episode.support_labels, experts="none", adaptation=few, batch_size=batch_size
    )
    return (time.perf_counter() - started) / TIMED_STEPS


def _factor(kind: str) -> int:
    return LORA_FACTOR if kind == "lora" else 1
