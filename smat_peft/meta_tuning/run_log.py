"""The figures of a run: those of each update, averaged over an interval before they are logged."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator

from smat_peft.meta_tuning.processes import averaged


class RunLog:
    """Figures by step, here and with Accelerate's trackers.

    Attributes:
        records: What has been logged.
        window: Figures of the updates since.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.records: list[dict[str, Any]] = []
        self.window: list[dict[str, float]] = []

    def average_processes(self) -> None:
        """Make the window the same in all processes, as a checkpoint needs it."""
        self.window = averaged(self.accelerator, self.window)

    def close_window(self, step: int) -> dict[str, float]:
        """Log the mean of the window, and begin another; empty where no update was done."""
        self.average_processes()
        window, self.window = self.window, []
        means = {name: sum(update[name] for update in window) / len(window) for name in window[0]} if window else {}
        if means:
            self.add(step, means)
        return means

    def add(self, step: int, figures: dict[str, float]) -> None:
        """Log figures."""
        self.records.append({"step": step} | figures)
        self.accelerator.log(figures, step=step)
