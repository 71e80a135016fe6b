"""The processes of a run: Accelerate's averaging of gradients, and what else they tell each other."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType

from smat_peft.errors import ConfigurationError

# Gloo raises a plain RuntimeError where a peer is gone; other backends one of these.
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused")

# A task's weights are made of whole gates, and each process needs all of them.
SHARDED = {DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM}


def create_accelerator(**settings: Any) -> Accelerator:
    """An Accelerator whose gradient averaging suits MetaLearner; `settings` are Accelerator's own.

    The learner keeps its buffers equal on all processes itself, and a gate pattern or a parameter that the feature does
    not depend on has no gradient.
    """
    averaging = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
    return Accelerator(kwargs_handlers=[averaging], **settings)


def check_processes(accelerator: Accelerator, episodes_per_step: int) -> None:
    """Raise a ConfigurationError where an update cannot be spread over the processes as they were launched."""
    if accelerator.gradient_accumulation_steps != 1:
        raise ConfigurationError(
            f"gradient_accumulation_steps is {accelerator.gradient_accumulation_steps}, by which Accelerate divides "
            "gradients; an update's episodes are accumulated already: set it to 1, and --episodes_per_step instead"
        )
    if accelerator.distributed_type in SHARDED:
        raise ConfigurationError(
            f"launched with {accelerator.distributed_type.value}, which shards what is learned, but each episode needs "
            "all of it; launch with data parallelism alone (MULTI_GPU, MULTI_CPU). Memory is saved by --max_batch_size "
            "and --gate_granularity structured"
        )
    if episodes_per_step % accelerator.num_processes:
        raise ConfigurationError(
            f"--episodes_per_step ({episodes_per_step}) must be a multiple of the {accelerator.num_processes} processes"
        )


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
