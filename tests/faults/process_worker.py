"""What each process of test_processes.py does.

torchrun --nproc_per_node 2 tests/faults/process_worker.py train FOLDER
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[2]))
from smat_peft import MetaTrainer
from smat_peft.commands.console import run_command
from tests.faults.small_run import NoiseEpisodes, make_trainer
from tests.processes import kill

UPDATES, EPISODES = 20, 4
CUT = 3  # the update in which something happens
BROKEN = 6  # the episode of one process in the second update


def trainer_in(folder: Path, before: Callable[[int], None] = lambda _: None) -> MetaTrainer:
    """The run, at rates of the demo's order."""
    rates = {"delta_lr": 0.01, "gate_lr": 10.0, "multiplier_lr": 0.1, "router_lr": 1e-3}
    episodes = NoiseEpisodes(before, broken={BROKEN})
    return make_trainer(folder, episodes, max_steps=UPDATES, episodes_per_step=EPISODES, **rates)


def train(folder: Path) -> None:
    """The gradients of the first update, then all updates."""
    trainer = trainer_in(folder)
    (episodes, *_) = trainer.batches(workers=0)
    buffers = [buffer.clone() for buffer in trainer.learner.buffers()]
    loss = torch.stack(list(trainer.prepared(episodes).values())).sum()
    trainer.accelerator.backward(loss * trainer.accelerator.num_processes)
    gradients = {name: p.grad.clone() for name, p in trainer.groups.all().items() if p.grad is not None}
    trainer.updates.zero_gradients()
    for buffer, before in zip(trainer.learner.buffers(), buffers, strict=True):
        buffer.copy_(before)
    trainer.train()
    if trainer.accelerator.is_main_process:
        save_file(gradients, folder / "gradients.safetensors")
        report = {"processes": trainer.accelerator.num_processes, "log": trainer.log, "skipped": trainer.skipped}
        (folder / "report.json").write_text(json.dumps(report))


def lose(folder: Path) -> None:
    """The last process dies in an update."""

    def die(index: int) -> None:
        if index == (CUT + 1) * EPISODES - 1:
            kill()

    trainer_in(folder, die).train()


def stop(folder: Path) -> None:
    """The last process alone gets a signal in an update."""

    def signalled(index: int) -> None:
        if index == (CUT + 1) * EPISODES - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer_in(folder, signalled).train()


if __name__ == "__main__":
    torch.set_num_threads(1)
    work = {"train": train, "lose": lose, "stop": stop}[sys.argv[1]]
    sys.exit(run_command(lambda argv: work(Path(argv[0])), sys.argv[2:]))
