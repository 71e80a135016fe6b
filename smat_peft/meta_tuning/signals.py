"""Stopping a run by a signal: the update is finished and a checkpoint written; a second signal ends it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A terminal or a scheduler signals all processes of a run, and a launcher passes it on to them: that is one request.
SAME_REQUEST_SECONDS = 1.0


class StopSignals:
    """Within its block, the first SIGINT or SIGTERM is noted, and a later one ends the process.

    In a thread that is not the main one it does nothing: only that one may handle signals.

    Attributes:
        received: The first signal; None while there is none.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received, self._since = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._since > SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def leave_signals_to_parent(_: int) -> None:
    """For processes that load episodes: they end when the one that started them does."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
