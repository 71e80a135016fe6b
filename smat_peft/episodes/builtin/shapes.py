"""Coloured shapes and flags: a class is a shape with its fill and colours, or a flag's layout with its colours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from smat_peft.episodes.builtin.colours import tone
from smat_peft.episodes.builtin.grid import Array, blend, image_of, plane
from smat_peft.episodes.builtin.lazy import LazyImages, random_for
from smat_peft.episodes.domain import Domain

IMAGES = 20  # of a class

RIM = 0.2  # of a hollow shape, whose height is about 2

Mask = NDArray[np.bool_]
Drawing = Callable[[Array, Array], Mask]  # x and y -> where there is ink
Layout = Callable[[Array, Array], NDArray[Any]]  # x and y -> which of a flag's three colours, 0 to 2


def _star(points: int, depth: float) -> Drawing:
    """Radius falls and rises linearly between 1 and `depth`."""

    def inside(x: Array, y: Array) -> Mask:
        phase = np.abs((np.arctan2(x, -y) * points / (2 * np.pi) + 0.5) % 1.0 - 0.5) * 2
        return np.hypot(x, y) <= 1 - (1 - depth) * phase

    return inside


def _flower(petals: int) -> Drawing:
    return lambda x, y: np.hypot(x, y) <= 0.68 + 0.32 * np.cos(petals * np.arctan2(x, -y))


def _gear(teeth: int) -> Drawing:
    return lambda x, y: np.hypot(x, y) <= np.where(np.cos(teeth * np.arctan2(x, y)) > 0, 1.0, 0.68)


def _cross(x: Array, y: Array) -> Mask:
    return (np.maximum(abs(x), abs(y)) <= 1) & (np.minimum(abs(x), abs(y)) <= 0.33)


def _heart(x: Array, y: Array) -> Mask:
    return (1.25 * x) ** 2 + (1.25 * (-y + 0.1) - 0.75 * np.sqrt(abs(1.25 * x))) ** 2 <= 1


SHAPES: dict[str, Drawing] = {
    "disc": lambda x, y: np.hypot(x, y) <= 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.85,
    "triangle": lambda x, y: (y <= 0.6) & (abs(x) <= (y + 1) * 0.58) & (y >= -1),
    "slant": lambda x, y: (abs(y) <= 0.5) & (abs(x + 0.6 * y) <= 0.7),
    "five-star": _star(5, 0.45),
    "cross": _cross,
    "flower": _flower(3),
    "oval": lambda x, y: np.hypot(x / 0.55, y) <= 1,
    "half": lambda x, y: (np.hypot(x, y + 0.5) <= 1) & (y > -0.5),
    "pair": lambda x, y: np.hypot(abs(x) - 0.52, y) <= 0.48,
    "angle": lambda x, y: (np.maximum(abs(x), abs(y)) <= 0.85) & ((x < -0.2) | (y > 0.2)),
    "heart": _heart,
    "gear": _gear(7),
    "crescent": lambda x, y: (np.hypot(x, y) <= 1) & (np.hypot(x - 0.45, y) > 0.75),
    "tee": lambda x, y: (np.maximum(abs(x), abs(y)) <= 0.85) & ((y < -0.25) | (abs(x) < 0.33)),
    "arrow": lambda x, y: ((abs(x) <= 0.3) & (y >= -0.1) & (y <= 1)) | ((y <= 0) & (abs(x) <= 1 + y)),
    "hourglass": lambda x, y: (abs(y) <= 1) & (abs(x) <= 0.12 + 0.8 * abs(y)),
    "drop": lambda x, y: (np.hypot(x, y - 0.4) <= 0.6) | ((y <= 0.4) & (y >= -1) & (abs(x) <= (y + 1) * 0.43)),
}


def _core(shape: Drawing, x: Array, y: Array) -> Mask:
    """What is left of a shape when its rim is taken off."""
    around = [(RIM * np.cos(angle), RIM * np.sin(angle)) for angle in np.arange(8) * np.pi / 4]
    return np.all([shape(x + right, y + down) for right, down in around], axis=0)


FILLS: dict[str, Callable[[Drawing, Array, Array], Mask]] = {
    "full": lambda shape, x, y: shape(x, y),
    "hollow": lambda shape, x, y: shape(x, y) & ~_core(shape, x, y),
    "striped": lambda shape, x, y: shape(x, y) & (((x + y) * 1.9) % 1.0 < 0.55),
    "dotted": lambda shape, x, y: shape(x, y) & (np.hypot((x * 2.4) % 1 - 0.5, (y * 2.4) % 1 - 0.5) > 0.3),
    "split": lambda shape, x, y: shape(x, y) & ((x > 0) | ~_core(shape, x, y)),
}

LAYOUTS: dict[str, Layout] = {
    "three beams": lambda x, y: np.floor((y + 1) * 1.5),
    "three pales": lambda x, y: np.floor((x + 1) * 1.5),
    "cross": lambda x, y: np.digitize(-np.minimum(abs(x + 0.25), abs(y)), (-0.3, -0.14)),
    "saltire": lambda x, y: np.where(abs(abs(x) - abs(y)) < 0.2, 1, np.where(abs(x) > abs(y), 2, 0)),
    "canton": lambda x, y: np.where((x < -0.1) & (y < 0), 2, np.floor((y + 1) * 3.5) % 2),
    "disc": lambda x, y: np.where(np.hypot(x, y) < 0.55, 2, y > 0),
    "wedge": lambda x, y: np.where(x < -abs(y) + 0.15, 2, y > 0),
    "quarters": lambda x, y: np.where(x * y > 0, 0, np.where(x > 0, 1, 2)),
    "frame": lambda x, y: np.digitize(-np.maximum(abs(x), abs(y)), (-0.85, -0.6)),
    "bend": lambda x, y: np.where(abs(x + y) < 0.4, 2, x + y > 0),
    "fess": lambda x, y: np.where(abs(y) < 0.25, 2, np.where(abs(y) < 0.6, 1, 0)),
    "lozenge": lambda x, y: np.where(abs(x) + abs(y) < 0.5, 2, np.where(abs(x) + abs(y) < 1.05, 1, 0)),
    "pile": lambda x, y: np.where(abs(x) < 0.5 - 0.5 * y, np.where(abs(x) < 0.2 - 0.2 * y, 2, 1), 0),
    "chief": lambda x, y: np.where(y < -0.33, 0, np.where(x < 0, 1, 2)),
    "gyron": lambda x, y: np.floor(np.arctan2(y, x) / (2 * np.pi) * 6 + 3) % 3,
}

# Per domain: its shapes, fills and pairs of colours (ink, paper); a class takes one of each.
SHAPE_DOMAINS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, str], ...]]] = {
    "shapes": (
        ("disc", "square", "triangle", "slant", "five-star", "cross", "flower", "oval", "half", "pair"),
        ("full", "hollow", "striped", "split"),
        (
            ("red", "white"),
            ("blue", "yellow"),
            ("white", "green"),
            ("black", "orange"),
            ("pink", "purple"),
            ("turquoise", "brown"),
        ),
    ),
    "emblems": (
        ("angle", "heart", "gear", "crescent", "tee", "arrow", "hourglass", "drop"),
        ("full", "hollow", "dotted"),
        (("yellow", "red"), ("white", "blue"), ("green", "pink"), ("black", "grey")),
    ),
}

# Per domain: its layouts and triples of colours. Triples come in all turns: colours without their places say little.
FLAG_DOMAINS: dict[str, tuple[tuple[str, ...], tuple[tuple[str, str, str], ...]]] = {
    "banners": (
        ("frame", "bend", "fess", "lozenge", "pile", "chief", "gyron"),
        (
            ("orange", "blue", "pink"),
            ("blue", "pink", "orange"),
            ("pink", "orange", "blue"),
            ("turquoise", "brown", "white"),
            ("brown", "white", "turquoise"),
            ("white", "turquoise", "brown"),
            ("purple", "yellow", "grey"),
            ("yellow", "grey", "purple"),
            ("grey", "purple", "yellow"),
        ),
    ),
    "flags": (
        ("three beams", "three pales", "cross", "saltire", "canton", "disc", "wedge", "quarters"),
        (
            ("red", "white", "blue"),
            ("white", "blue", "red"),
            ("blue", "red", "white"),
            ("black", "yellow", "green"),
            ("yellow", "green", "black"),
            ("green", "black", "yellow"),
        ),
    ),
}


def shape_domain(name: str) -> Domain:
    """The domain of shapes called `name`, 20 images a class: size, turn, position, tone and light differ.

    Every second of all combinations is a class, so that no single property tells the classes apart. Training changes
    nothing about the images: shape, size of the parts and colours are the class.
    """
    shapes, fills, pairs = SHAPE_DOMAINS[name]
    combinations = [
        (shapes[i], fills[j], pairs[k])
        for i, j, k in product(range(len(shapes)), range(len(fills)), range(len(pairs)))
        if (i + j + k) % 2 == 0
    ]
    return Domain(
        name=name,
        class_images={
            f"{fill} {shape}, {ink} on {paper}": LazyImages(
                partial(draw_shape, name, shape, fill, (ink, paper)), IMAGES
            )
            for shape, fill, (ink, paper) in combinations
        },
        augment=frozenset(),
    )


def flag_domain(name: str) -> Domain:
    """The domain of flags called `name`, 20 images a class: size, turn, position, tone and light differ.

    Training changes nothing about the images: the colours and their places are the class.
    """
    layouts, triples = FLAG_DOMAINS[name]
    return Domain(
        name=name,
        class_images={
            f"{layout} of {', '.join(triple)}": LazyImages(partial(draw_flag, name, layout, triple), IMAGES)
            for layout, triple in product(layouts, triples)
        },
        augment=frozenset(),
    )


def draw_shape(domain: str, shape: str, fill: str, colours: tuple[str, str], number: int) -> Image.Image:
    """Image `number` of the class of a shape."""
    random = random_for(domain, shape, fill, *colours, number)
    x, y = plane(
        degrees=random.uniform(-15, 15),
        scale=random.uniform(0.45, 0.8),
        offset=(random.uniform(-0.2, 0.2), random.uniform(-0.2, 0.2)),
    )
    ink, paper = (tone(colour, random) for colour in colours)
    share = FILLS[fill](SHAPES[shape], x, y).astype(np.float64)
    return image_of(_lit(blend(share, ink, paper), random))


def draw_flag(domain: str, layout: str, colours: tuple[str, str, str], number: int) -> Image.Image:
    """Image `number` of the class of a flag."""
    random = random_for(domain, layout, *colours, number)
    x, y = plane(
        degrees=random.uniform(-15, 15),
        scale=random.uniform(0.8, 1.3),
        offset=(random.uniform(-0.25, 0.25), random.uniform(-0.25, 0.25)),
    )
    tones = np.stack([tone(colour, random) for colour in colours])
    return image_of(_lit(tones[np.clip(LAYOUTS[layout](x, y), 0, 2).astype(int)], random))


def _lit(colours: Array, random: np.random.Generator) -> Array:
    """Light from one side, and the grain of a camera."""
    x, _ = plane(degrees=random.uniform(0, 360))
    shade = 1 + random.uniform(0, 0.4) * x
    return colours * shade[..., None] + random.normal(0, random.uniform(0, 0.15), (*x.shape, 1))
