"""How learning rates go over a run (METHOD 9)."""

from __future__ import annotations

import math


def warmup_cosine(time: float, warmup: float, end: float) -> float:
    """Factor of the learning rates: from 0 to 1 over `warmup`, then a cosine to 0 at `end`, in any unit of time.

    After `end` it rises again, as the authors' does.
    """
    if time < warmup:
        return time / warmup
    return 0.5 * (1 + math.cos(math.pi * (time - warmup) / (end - warmup)))
