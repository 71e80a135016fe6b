"""Activation checkpointing that recomputes with the weights of the task it ran under.

A checkpointed region runs again in the backward pass, when its `task` block is over and another task, or none, may be
in force. So what a checkpoint calls is bound to the task in force when it was called. torch offers this only to callers
that pass `context_fn`, which models do not; both ways into its implementation are wrapped while a block is open.
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
    without_reentry = checkpointing._checkpoint_without_reentrant_generator
    with_reentry = checkpointing.CheckpointFunction

    class BoundCheckpointFunction:
        @staticmethod
        def apply(function: Callable[..., Any], *args: Any) -> Any:
            return with_reentry.apply(_bind(function, state), *args)

    def bound_without_reentry(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return without_reentry(_bind(function, state), *args, **kwargs)

    checkpointing._checkpoint_without_reentrant_generator = bound_without_reentry  # type: ignore[assignment]
    checkpointing.CheckpointFunction = BoundCheckpointFunction  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        checkpointing._checkpoint_without_reentrant_generator = without_reentry
        checkpointing.CheckpointFunction = with_reentry  # type: ignore[misc]


def _bind(function: Callable[..., Any], state: SharedState) -> Callable[..., Any]:
    weights = state.weights

    @functools.wraps(function, assigned=(), updated=())
    def within_task(*args: Any, **kwargs: Any) -> Any:
        now, state.weights = state.weights, weights
        try:
            return function(*args, **kwargs)
        finally:
            state.weights = now

    return within_task
