"""Blocks of tasks that are open in several threads: each recomputes with its own, and torch is left as it was."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.utils.checkpoint as checkpointing
from torch import Tensor

from smat_peft.tuner.recompute import FUNCTION, GENERATOR, recompute_with_task
from smat_peft.tuner.state import SharedState, Task


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Any:
    before = [getattr(checkpointing, name) for name in (GENERATOR, FUNCTION)]
    yield
    assert [getattr(checkpointing, name) for name in (GENERATOR, FUNCTION)] == before


def state_on_task() -> SharedState:
    return SharedState(torch.nn.Module(), task=Task({"weight": torch.ones(1)}, "default"))


def checkpointed(state: SharedState, seen: list[Any], reentrant: bool) -> Tensor:
    def region(x: Tensor) -> Tensor:
        seen.append(state.task)
        return x.sin()

    x = torch.ones(2, requires_grad=True)
    return checkpointing.checkpoint(region, x, use_reentrant=reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_blocks_may_be_left_in_the_order_in_which_they_were_opened(reentrant: bool) -> None:
    first, second = state_on_task(), state_on_task()
    seen: list[Any] = []
    blocks = [recompute_with_task(state) for state in (first, second)]
    for block in blocks:
        block.__enter__()
    blocks[0].__exit__(None, None, None)
    result, task = checkpointed(second, seen, reentrant), second.task
    blocks[1].__exit__(None, None, None)
    second.task = None
    result.sum().backward()
    assert seen == [task, task]
    assert second.task is None


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_block_of_another_thread_binds_nothing_here(reentrant: bool) -> None:
    state, opened, done = state_on_task(), threading.Event(), threading.Event()

    def hold() -> None:
        with recompute_with_task(state):
            opened.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    opened.wait(60)
    seen: list[Any] = []
    result, task = checkpointed(state, seen, reentrant), state.task
    assert ("CheckpointFunction" in type(result.grad_fn).__name__) == reentrant
    state.task = None
    result.sum().backward()
    done.set()
    thread.join()
    assert seen == [task, None]
