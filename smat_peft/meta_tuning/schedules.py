"""How learning rates go over a run (METHOD 9)."""

from __future__ import annotations

import math


def warmup_cosine(time: float, warmup: float, end: float) -> float:
    """Factor of the learning rates: from 0 to 1 over `warmup`, then a cosine to 0 at `end`, in any unit of time."""
    if time < warmup:
        return time / warmup
    return 0.5 * (1 + math.cos(math.pi * (time - warmup) / max(end - warmup, 1)))
