"""The processes of a run: Accelerate's averaging of gradients, and what else they tell each other."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

# Gloo raises a plain RuntimeError where a peer is gone; other backends one of these.
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")


def create_accelerator(**settings: Any) -> Accelerator:
    """An Accelerator whose gradient averaging suits MetaLearner; `settings` are Accelerator's own.

    The learner keeps its buffers equal on all processes itself, and a gate pattern or a parameter that the feature does
    not depend on has no gradient.
    """
    averaging = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
    return Accelerator(kwargs_handlers=[averaging], **settings)


def everywhere(accelerator: Accelerator, flag: bool) -> bool:
    """Whether a flag is set in every process."""
    if accelerator.num_processes == 1:
        return flag
    count = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum")
    return bool(count == accelerator.num_processes)


def anywhere(accelerator: Accelerator, flag: bool) -> bool:
    """Whether a flag is set in any process."""
    return not everywhere(accelerator, not flag)


def averaged(accelerator: Accelerator, records: list[dict[str, float]]) -> list[dict[str, float]]:
    """Figures, the same names in every process, averaged over the processes."""
    if accelerator.num_processes == 1 or not records:
        return records
    local = torch.tensor([list(record.values()) for record in records], device=accelerator.device)
    means = accelerator.reduce(local, "mean").tolist()
    return [dict(zip(records[0], row, strict=True)) for row in means]


def is_of_lost_process(error: RuntimeError) -> bool:
    """Whether an error says that another process of the run is gone."""
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in LOST_PEER)
