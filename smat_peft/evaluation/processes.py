"""Work that is spread over the processes of an Accelerator; without one, this process does it all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_main(accelerator: Accelerator | None) -> bool:
    """Whether this is the process that reads and writes files."""
    return accelerator is None or accelerator.is_main_process


def spread(function: Callable[[Item], Result], items: Sequence[Item], accelerator: Accelerator | None) -> list[Result]:
    """The results for all items in their order, in every process; each has worked on every n-th item."""
    if accelerator is None or accelerator.num_processes == 1:
        return [function(item) for item in items]
    own = range(accelerator.process_index, len(items), accelerator.num_processes)
    results: list[tuple[int, Result]] = gather_object([(place, function(items[place])) for place in own])
    return [result for _, result in sorted(results, key=lambda pair: pair[0])]


def shared(value: Result, accelerator: Accelerator | None) -> Result:
    """The main process's value, in every process."""
    if accelerator is None or accelerator.num_processes == 1:
        return value
    box = [value]
    broadcast_object_list(box)
    return box[0]
