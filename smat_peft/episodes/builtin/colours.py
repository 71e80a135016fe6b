"""Colours that keep their name while their exact tone differs from image to image."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

# Hue (turns), saturation, value. Any two of them stay apart under the jitter of [`tone`].
COLOURS = {
    "red": (0.00, 0.90, 0.80),
    "orange": (0.08, 0.95, 0.95),
    "yellow": (0.15, 0.85, 0.95),
    "green": (0.36, 0.85, 0.55),
    "turquoise": (0.49, 0.75, 0.80),
    "blue": (0.63, 0.90, 0.75),
    "purple": (0.77, 0.70, 0.55),
    "pink": (0.92, 0.45, 0.95),
    "brown": (0.06, 0.75, 0.38),
    "white": (0.13, 0.05, 0.97),
    "grey": (0.60, 0.06, 0.55),
    "black": (0.65, 0.30, 0.10),
}


def tone(name: str, random: np.random.Generator) -> NDArray[np.float64]:
    """One tone of a colour: red, green and blue, `[3]`, each in 0..1."""
    hue, saturation, value = COLOURS[name]
    return np.array(
        colorsys.hsv_to_rgb(
            (hue + random.uniform(-0.015, 0.015)) % 1.0,
            float(np.clip(saturation + random.uniform(-0.1, 0.1), 0, 1)),
            float(np.clip(value + random.uniform(-0.08, 0.08), 0, 1)),
        )
    )


def any_colour(random: np.random.Generator) -> NDArray[np.float64]:
    """Red, green and blue, `[3]`, without a bias towards any."""
    return random.uniform(0.0, 1.0, 3)
