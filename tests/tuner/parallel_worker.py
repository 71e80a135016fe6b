"""What each process of test_parallel.py does: wrap an adapted model, take half of a batch, compare with one process.

torchrun --nproc_per_node 2 tests/tuner/parallel_worker.py ddp OUTPUT.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.faults.small_run import distance
from tests.tuner.backbones import BACKBONES, outputs, task_images

IMAGES = task_images(7, shots=4)[0]


def make_model() -> nn.Module:
    return BACKBONES["dinov2"].adapted().train()


def loss_of(model: nn.Module, images: Tensor) -> Tensor:
    return outputs(model, images).square().mean()


def one_process() -> tuple[nn.Module, dict[str, Tensor]]:
    model = make_model()
    loss_of(model, IMAGES).backward()
    return model, gradients(model)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    # A sharded module keeps the gradients of all its parameters in one piece, of frozen ones, too.
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def ddp() -> dict[str, Any]:
    wrapped = DistributedDataParallel(make_model())
    loss_of(wrapped, own_images()).backward()
    return {"gradients": gradients(wrapped.module), "state": wrapped.module.state_dict()}


def fsdp() -> dict[str, Any]:
    wrapped = FullyShardedDataParallel(make_model(), use_orig_params=True, device_id=torch.device("cpu"))
    loss_of(wrapped, own_images()).backward()
    with FullyShardedDataParallel.summon_full_params(wrapped, with_grads=True):
        found = gradients(wrapped.module)
    return {"gradients": found, "state": wrapped.state_dict()}


def own_images() -> Tensor:
    return IMAGES.chunk(dist.get_world_size())[dist.get_rank()]


def main() -> None:
    torch.set_num_threads(1)
    modes: dict[str, Callable[[], dict[str, Any]]] = {"ddp": ddp, "fsdp": fsdp}
    mode, output = sys.argv[1:]
    dist.init_process_group("gloo")
    result = modes[mode]()
    model, expected = one_process()
    fresh = make_model()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    fresh.load_state_dict(result["state"])
    report = {
        "processes": dist.get_world_size(),
        "gradients": distance(result["gradients"], expected),
        "reloaded": distance(fresh.state_dict(), model.state_dict()),
        "trained": sorted({name.split(".smat_")[1].split(".")[0] for name in result["gradients"]}),
    }
    if dist.get_rank() == 0:
        Path(output).write_text(json.dumps(report))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
