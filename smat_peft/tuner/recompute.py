"""Activation checkpointing that recomputes with the weights of the task it ran under.

A checkpointed region runs again in the backward pass, when its `task` block is over and another task, or none, may be
in force. So what a checkpoint calls is bound to the task in force when it was called. torch offers this only to callers
that pass `context_fn`, which models do not; both ways into its implementation are wrapped while a block is open.

Its re-entrant way runs a backward pass for each region, each through the whole graph of the task weights, which all
regions share: torch allows one. It cannot compute an inner gradient either. So inside a block it becomes the other way.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.utils.checkpoint as checkpointing

from smat_peft.tuner.state import SharedState

GENERATOR, FUNCTION = "_checkpoint_without_reentrant_generator", "CheckpointFunction"  # torch's two ways in


class _Blocks(threading.local):
    """Whose blocks are open in this thread, the innermost last."""

    def __init__(self) -> None:
        self.states: list[SharedState] = []


_here = _Blocks()
_lock = threading.Lock()
_open = 0  # blocks, in all threads
_torch: dict[str, Any] = {}  # torch's own, while some block is open


@contextmanager
def recompute_with_task(state: SharedState) -> Iterator[None]:
    """While open, checkpointed regions of this thread remember `state`'s task for their recomputation."""
    _here.states.append(state)
    _wrap(1)
    try:
        yield
    finally:
        _wrap(-1)
        last = max(at for at, each in enumerate(_here.states) if each is state)
        del _here.states[last]


def _wrap(change: int) -> None:
    """Count a block that opens or closes: torch's functions are wrapped from the first to the last."""
    global _open
    with _lock:
        if _open == 0:
            _torch.update({name: getattr(checkpointing, name) for name in (GENERATOR, FUNCTION)})
        _open += change
        wrapped = {GENERATOR: _bound_generator, FUNCTION: _WithoutReentry} if _open else _torch
        for name, function in wrapped.items():
            setattr(checkpointing, name, function)


def _bound_generator(region: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return _torch[GENERATOR](functools.reduce(_bind, _here.states, region), *args, **kwargs)


class _WithoutReentry:
    @staticmethod
    def apply(region: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        if not _here.states:  # the block is another thread's
            return _torch[FUNCTION].apply(region, preserve_rng_state, *args)
        return checkpointing.checkpoint(region, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)


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
