"""Activation checkpointing that recomputes with the weights of the task it ran under.

A checkpointed region runs again in the backward pass, when its `task` block is over and another task, or none, may be
in force. So what a checkpoint calls is bound to the task in force when it was called. torch offers this only to callers
that pass `context_fn`, which models do not; both ways into its implementation are wrapped while a block is open.

Its re-entrant way runs a backward pass for each region, each through the whole graph of the task weights, which all
regions share: torch allows one. It cannot compute an inner gradient either. So inside a block it becomes the other way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.utils.checkpoint as checkpointing

from smat_peft.tuner.state import SharedState


@contextmanager
def recompute_with_task(state: SharedState) -> Iterator[None]:
    """While open, checkpointed regions remember `state`'s task for their recomputation."""
    generator, function = checkpointing._checkpoint_without_reentrant_generator, checkpointing.CheckpointFunction

    def bound_generator(region: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return generator(_bind(region, state), *args, **kwargs)

    class WithoutReentry:
        @staticmethod
        def apply(region: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
            return checkpointing.checkpoint(region, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)

    checkpointing._checkpoint_without_reentrant_generator = bound_generator  # type: ignore[assignment]
    checkpointing.CheckpointFunction = WithoutReentry  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        checkpointing._checkpoint_without_reentrant_generator = generator
        checkpointing.CheckpointFunction = function  # type: ignore[misc]


def _bind(function: Callable[..., Any], state: SharedState) -> Callable[..., Any]:
    task = state.task

    @functools.wraps(function, assigned=(), updated=())
    def within_task(*args: Any, **kwargs: Any) -> Any:
        now, state.task = state.task, task
        try:
            return function(*args, **kwargs)
        finally:
            state.task = now

    return within_task
