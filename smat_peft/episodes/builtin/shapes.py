"""Coloured shapes and flags: a class is a shape with its fill and colours, or a flag's layout with its colours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
from PIL import Image

from smat_peft.episodes.builtin.colours import tone
from smat_peft.episodes.builtin.grid import Array, blend, image_of, plane
from smat_peft.episodes.builtin.lazy import LazyImages, random_for
from smat_peft.episodes.domain import Domain

IMAGES = 20  # of a class

Drawing = Callable[[Array, Array], Array]  # x and y -> where there is ink, 0..1


def _polygon(corners: int) -> Drawing:
    sector = 2 * np.pi / corners

    def inside(x: Array, y: Array) -> Array:
        angle = np.arctan2(x, -y)  # from the top, so that a corner points up
        return np.hypot(x, y) * np.cos((angle % sector) - sector / 2) <= np.cos(sector / 2)

    return inside


def _star(points: int, depth: float) -> Drawing:
    """Radius falls and rises linearly between 1 and `depth`."""

    def inside(x: Array, y: Array) -> Array:
        phase = np.abs((np.arctan2(x, -y) * points / (2 * np.pi) + 0.5) % 1.0 - 0.5) * 2
        return np.hypot(x, y) <= 1 - (1 - depth) * phase

    return inside


def _flower(petals: int) -> Drawing:
    return lambda x, y: np.hypot(x, y) <= 0.68 + 0.32 * np.cos(petals * np.arctan2(x, -y))


def _gear(teeth: int) -> Drawing:
    return lambda x, y: (np.hypot(x, y) <= np.where(np.cos(teeth * np.arctan2(x, y)) > 0, 1.0, 0.72)) & (
        np.hypot(x, y) > 0.3
    )


def _cross(x: Array, y: Array) -> Array:
    return (np.maximum(abs(x), abs(y)) <= 1) & (np.minimum(abs(x), abs(y)) <= 0.33)


def _heart(x: Array, y: Array) -> Array:
    return (1.25 * x) ** 2 + (1.25 * (-y + 0.1) - 0.75 * np.sqrt(abs(1.25 * x))) ** 2 <= 1


SHAPES: dict[str, Drawing] = {
    "disc": lambda x, y: np.hypot(x, y) <= 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.85,
    "triangle": _polygon(3),
    "pentagon": _polygon(5),
    "five-star": _star(5, 0.45),
    "cross": _cross,
    "flower": _flower(4),
    "oval": lambda x, y: np.hypot(x / 0.55, y) <= 1,
    "half": lambda x, y: (np.hypot(x, y + 0.5) <= 1) & (y > -0.5),
    "bars": lambda x, y: (abs(x) <= 0.9) & (abs(abs(y) - 0.6) <= 0.28),
    "hexagon": _polygon(6),
    "heart": _heart,
    "gear": _gear(8),
    "crescent": lambda x, y: (np.hypot(x, y) <= 1) & (np.hypot(x - 0.45, y) > 0.75),
    "burst": _star(12, 0.62),
    "arrow": lambda x, y: ((abs(x) <= 0.3) & (y >= -0.1) & (y <= 1)) | ((y <= 0) & (abs(x) <= 1 + y)),
    "hourglass": lambda x, y: (abs(y) <= 1) & (abs(x) <= 0.12 + 0.8 * abs(y)),
    "drop": lambda x, y: (np.hypot(x, y - 0.4) <= 0.6) | ((y <= 0.4) & (y >= -1) & (abs(x) <= (y + 1) * 0.43)),
}

FILLS: dict[str, Callable[[Drawing], Drawing]] = {
    "full": lambda shape: shape,
    "hollow": lambda shape: lambda x, y: shape(x, y) & ~np.asarray(shape(x / 0.62, y / 0.62), dtype=bool),
    "striped": lambda shape: lambda x, y: shape(x, y) & (((x + y) * 1.9) % 1.0 < 0.55),
    "dotted": lambda shape: lambda x, y: shape(x, y) & (np.hypot((x * 2.4) % 1 - 0.5, (y * 2.4) % 1 - 0.5) > 0.3),
    "split": lambda shape: lambda x, y: shape(x, y) & ((x > 0) | ~np.asarray(shape(x / 0.7, y / 0.7), dtype=bool)),
}

LAYOUTS: dict[str, Drawing] = {  # which of a flag's colours lies where: 0, 1 or 2
    "three beams": lambda x, y: np.floor((y + 1) * 1.5),
    "three pales": lambda x, y: np.floor((x + 1) * 1.5),
    "cross": lambda x, y: np.where(np.minimum(abs(x + 0.25), abs(y)) < 0.14, 2, np.minimum(abs(x + 0.25), abs(y)) < 0.3),
    "saltire": lambda x, y: np.where(abs(abs(x) - abs(y)) < 0.2, 1, np.where(abs(x) > abs(y), 2, 0)),
    "canton": lambda x, y: np.where((x < -0.1) & (y < 0), 2, np.floor((y + 1) * 3.5) % 2),
    "disc": lambda x, y: np.where(np.hypot(x, y) < 0.55, 2, y > 0),
    "wedge": lambda x, y: np.where(x < -abs(y) + 0.15, 2, y > 0),
    "quarters": lambda x, y: np.where(x * y > 0, 0, np.where(x > 0, 1, 2)),
    "frame": lambda x, y: np.where(np.maximum(abs(x), abs(y)) > 0.68, 0, np.where(np.maximum(abs(x), abs(y)) > 0.35, 1, 2)),
    "bend": lambda x, y: np.where(abs(x + y) < 0.4, 2, x + y > 0),
    "fess": lambda x, y: np.where(abs(y) < 0.25, 2, np.where(abs(y) < 0.6, 1, 0)),
    "lozenge": lambda x, y: np.where(abs(x) + abs(y) < 0.5, 2, np.where(abs(x) + abs(y) < 1.05, 1, 0)),
    "pile": lambda x, y: np.where(abs(x) < 0.5 - 0.5 * y, np.where(abs(x) < 0.2 - 0.2 * y, 2, 1), 0),
    "bars": lambda x, y: np.floor((y + 1) * 3) % 3,
    "gyron": lambda x, y: np.floor(np.arctan2(y, x) / (2 * np.pi) * 6 + 3) % 3,
}

# Per domain: its shapes, fills and pairs of colours (ink, paper); a class takes one of each.
SHAPE_DOMAINS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, str], ...]]] = {
    "shapes": (
        ("disc", "square", "triangle", "pentagon", "five-star", "cross", "flower", "oval", "half", "bars"),
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
        ("hexagon", "heart", "gear", "crescent", "burst", "arrow", "hourglass", "drop"),
        ("full", "hollow", "dotted"),
        (("yellow", "red"), ("white", "blue"), ("green", "pink"), ("black", "grey")),
    ),
}

# Per domain: its layouts and triples of colours.
FLAG_DOMAINS: dict[str, tuple[tuple[str, ...], tuple[tuple[str, str, str], ...]]] = {
    "banners": (
        ("frame", "bend", "fess", "lozenge", "pile", "bars", "gyron"),
        (
            ("red", "yellow", "black"),
            ("blue", "white", "orange"),
            ("green", "pink", "white"),
            ("purple", "yellow", "turquoise"),
            ("brown", "grey", "pink"),
            ("black", "turquoise", "red"),
        ),
    ),
    "flags": (
        ("three beams", "three pales", "cross", "saltire", "canton", "disc", "wedge", "quarters"),
        (
            ("red", "white", "blue"),
            ("green", "yellow", "red"),
            ("blue", "yellow", "green"),
            ("black", "red", "white"),
            ("turquoise", "white", "orange"),
            ("white", "red", "green"),
        ),
    ),
}


def shape_domain(name: str) -> Domain:
    """The domain of shapes called `name`, 20 images a class: size, turn, position, tone and light differ.

    Every second of all combinations is a class, so that no single property tells the classes apart.
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
        augment=frozenset(("mirror",)),
    )


def flag_domain(name: str) -> Domain:
    """The domain of flags called `name`, 20 images a class: size, turn, position, tone and light differ."""
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
        scale=random.uniform(0.55, 0.85),
        offset=(random.uniform(-0.15, 0.15), random.uniform(-0.15, 0.15)),
    )
    ink, paper = (tone(colour, random) for colour in colours)
    share = np.asarray(FILLS[fill](SHAPES[shape])(x, y), dtype=np.float64)
    return image_of(_lit(blend(share, ink, paper), random))


def draw_flag(domain: str, layout: str, colours: tuple[str, str, str], number: int) -> Image.Image:
    """Image `number` of the class of a flag."""
    random = random_for(domain, layout, *colours, number)
    x, y = plane(
        degrees=random.uniform(-15, 15),
        scale=random.uniform(0.85, 1.2),
        offset=(random.uniform(-0.15, 0.15), random.uniform(-0.15, 0.15)),
    )
    tones = np.stack([tone(colour, random) for colour in colours])
    return image_of(_lit(tones[np.clip(LAYOUTS[layout](x, y), 0, 2).astype(int)], random))


def _lit(colours: Array, random: np.random.Generator) -> Array:
    """Light from one side, and the grain of a camera."""
    x, y = plane(degrees=random.uniform(0, 360))
    shade = 1 + random.uniform(0, 0.2) * x
    return colours * shade[..., None] + random.normal(0, random.uniform(0, 0.1), (*x.shape, 1))
