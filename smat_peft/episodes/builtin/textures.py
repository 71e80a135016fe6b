"""Procedural textures: a class is a family of patterns with its parameters; colours are no part of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
from PIL import Image

from smat_peft.episodes.builtin.colours import any_colour
from smat_peft.episodes.builtin.grid import Array, blend, image_of, plane
from smat_peft.episodes.builtin.lazy import LazyImages, random_for
from smat_peft.episodes.domain import Domain

IMAGES = 20  # of a class
LEAST_CONTRAST = 0.35  # between the two colours of an image, in brightness 0..1

Generator = np.random.Generator
Family = Callable[..., Array]  # x, y, random, then the class's parameters -> brightness 0..1


def _wave(x: Array, sharp: bool = False) -> Array:
    wave = np.sin(2 * np.pi * x)
    return (wave > 0).astype(np.float64) if sharp else (wave + 1) / 2


def _noise(shape: tuple[int, ...], random: Generator, waves: float, width: float, stretch: float) -> Array:
    """Smooth noise of about `waves` waves an image, of mean 0 and deviation 1; `stretch` > 1 draws it out sideways."""
    down, right = np.meshgrid(*(np.fft.fftfreq(side) * side for side in shape), indexing="ij")
    distance = np.hypot(down / np.sqrt(stretch), right * np.sqrt(stretch))
    spectrum = np.exp(-(((distance - waves) / (width * waves)) ** 2))
    field: Array = np.fft.ifft2(np.fft.fft2(random.normal(size=shape)) * spectrum).real
    return np.asarray((field - field.mean()) / field.std())


def stripes(x: Array, y: Array, random: Generator, waves: float, angle: float, sharp: bool) -> Array:
    along = x * np.cos(np.radians(angle)) + y * np.sin(np.radians(angle))
    return _wave(along * waves / 2, sharp)


def checks(x: Array, y: Array, random: Generator, waves: float, sharp: bool) -> Array:
    return abs(_wave(x * waves / 2, sharp) - _wave(y * waves / 2, sharp))


def dots(x: Array, y: Array, random: Generator, waves: float, radius: float, staggered: bool) -> Array:
    row = np.floor(y * waves / 2)
    across = x * waves / 2 + (row % 2) * 0.5 * staggered
    return (np.hypot(across % 1 - 0.5, (y * waves / 2) % 1 - 0.5) < radius).astype(np.float64)


def clouds(x: Array, y: Array, random: Generator, waves: float, stretch: float) -> Array:
    return 0.5 + 0.25 * _noise(x.shape, random, waves, 0.8, stretch)


def rings(x: Array, y: Array, random: Generator, waves: float, centre: float) -> Array:
    return _wave(np.hypot(x - centre, y - centre) * waves / 2)


def bricks(x: Array, y: Array, random: Generator, rows: float, length: float, joint: float) -> Array:
    down = (y + 1) * rows / 2
    across = (x + 1) * rows / (2 * length) + np.floor(down) % 2 * 0.5
    return ((down % 1 > joint) & (across % 1 > joint / length)).astype(np.float64)


def scales(x: Array, y: Array, random: Generator, rows: float, filled: bool) -> Array:
    down = (y + 1) * rows / 2
    across = (x + 1) * rows / 2
    inside = np.zeros_like(x)
    for above in (1, 0):  # each row of discs lies over the one below it
        row = np.floor(down) - above
        radius = np.hypot((across + row % 2 * 0.5) % 1 - 0.5, down - row) / 1.1
        inside = np.where(radius < 1, radius, inside)
    return inside if filled else ((inside > 0.72) & (inside < 1)).astype(np.float64)


def weave(x: Array, y: Array, random: Generator, threads: float, over: int) -> Array:
    across, down = (x + 1) * threads / 2, (y + 1) * threads / 2
    warp_on_top = (np.floor(across) + np.floor(down)) % over < over / 2
    return np.where(warp_on_top, 0.45 + 0.55 * np.sin(np.pi * (across % 1)), 0.55 * np.sin(np.pi * (down % 1)))


def honeycomb(x: Array, y: Array, random: Generator, count: float, wall: float) -> Array:
    across, down = x * count / 2, y * count / 2 / np.sqrt(0.75)
    first = np.stack((across - np.round(across), (down / 2 - np.round(down / 2)) * 2 * np.sqrt(0.75)))
    second = np.stack((across % 1 - 0.5, (down / 2 % 1 - 0.5) * 2 * np.sqrt(0.75)))
    nearest = abs(np.where(np.hypot(*first) < np.hypot(*second), first, second))
    edge = np.maximum(nearest[0], nearest[0] / 2 + nearest[1] * np.sqrt(0.75))
    return (edge < 0.5 - wall).astype(np.float64)


def parquet(x: Array, y: Array, random: Generator, blocks: float, boards: int) -> Array:
    across, down = (x + 1) * blocks / 2, (y + 1) * blocks / 2
    upright = (np.floor(across) + np.floor(down)) % 2 < 1
    return np.where(upright, (across * boards) % 1, (down * boards) % 1)


def zigzag(x: Array, y: Array, random: Generator, waves: float, height: float) -> Array:
    return _wave(y * waves / 2 + height * abs((x * waves / 4) % 1 - 0.5), sharp=True)


def pebbles(x: Array, y: Array, random: Generator, count: int, jointed: bool) -> Array:
    corners = np.stack(np.meshgrid(np.arange(-2, count + 2), np.arange(-2, count + 2)), axis=-1).reshape(-1, 2)
    points = (corners + random.uniform(0.1, 0.9, corners.shape)) / count * 2 - 1
    distance = np.hypot(x[..., None] - points[:, 0], y[..., None] - points[:, 1])
    if not jointed:
        return distance.argmin(-1) * 0.618 % 1  # neighbours differ in brightness
    nearest = np.partition(distance, 1, axis=-1)
    return np.clip((nearest[..., 1] - nearest[..., 0]) * 2 * count, 0, 1)


def spiral(x: Array, y: Array, random: Generator, arms: int, waves: float) -> Array:
    return _wave(np.hypot(x, y) * waves / 2 + np.arctan2(y, x) * arms / (2 * np.pi), sharp=True)


def plaid(x: Array, y: Array, random: Generator, waves: float, thin: float, lines: int) -> Array:
    def bands(t: Array) -> Array:
        main = ((t * waves / 2) % 1 < 0.5).astype(np.float64)
        return abs(main - ((t * waves * lines / 2) % 1 < thin))

    return (bands(x) + bands(y)) / 2


def marble(x: Array, y: Array, random: Generator, waves: float, turmoil: float) -> Array:
    return _wave((x + y) * waves / 4 + turmoil * _noise(x.shape, random, 2, 0.8, 1.0)) ** 0.5


def wood(x: Array, y: Array, random: Generator, waves: float, knot: float) -> Array:
    warp = 0.12 * _noise(x.shape, random, 2, 0.6, 0.3)
    return (np.hypot((x + warp) * knot, (y - 1.2) * 0.35) * waves) % 1


def spots(x: Array, y: Array, random: Generator, waves: float, share: float, ring: bool) -> Array:
    field = _noise(x.shape, random, waves, 0.25, 1.0)
    return ((abs(field - share) < 0.45) if ring else (field > share)).astype(np.float64)


def scratches(x: Array, y: Array, random: Generator, waves: float, look: str) -> Array:
    stretches = {"upright": (0.1,), "level": (8.0,), "crossed": (0.1, 8.0)}[look]
    fields = [abs(_noise(x.shape, random, waves, 0.3, stretch)) for stretch in stretches]
    return np.clip(np.min(fields, axis=0) * 1.5, 0, 1)


def houndstooth(x: Array, y: Array, random: Generator, count: float, slant: float) -> Array:
    across, down = (x + 1) * count / 2, (y + 1) * count / 2
    left, top = np.floor(across * 2) % 2, np.floor(down * 2) % 2
    return np.where(left == top, left, ((across + down * slant) * 4 % 2 < 1).astype(np.float64))


# Per domain: families, each with the values of its parameters; every combination is a class.
TEXTURE_DOMAINS: dict[str, tuple[tuple[Family, tuple[tuple[float | str, ...], ...]], ...]] = {
    "patterns": (
        (stripes, ((3, 5, 8), (0, 45, 90, 135), (False, True))),
        (checks, ((3, 5, 8), (False, True))),
        (dots, ((4, 6, 9), (0.22, 0.38), (False, True))),
        (clouds, ((2, 4, 8), (0.2, 1, 5))),
        (rings, ((5, 9, 14), (0.0, 0.9))),
    ),
    "masonry": (
        (bricks, ((3, 5, 8), (1.5, 3), (0.12, 0.3))),
        (scales, ((3, 5, 8), (False, True))),
        (weave, ((4, 7, 10), (2, 4))),
        (honeycomb, ((3, 5, 8), (0.06, 0.15))),
        (parquet, ((3, 5), (2, 3, 4))),
    ),
    "minerals": (
        (zigzag, ((3, 5, 8), (0.7, 1.6))),
        (pebbles, ((3, 5, 7, 10), (False, True))),
        (spiral, ((1, 2, 4), (3, 7))),
    ),
    "fabrics": (
        (plaid, ((3, 5), (0.2, 0.4), (3, 4))),
        (marble, ((4, 10), (0.15, 0.35))),
        (wood, ((3, 6), (0.4, 1.2))),
        (spots, ((4, 7), (0.0, 0.9), (False, True))),
        (scratches, ((4, 8), ("upright", "level", "crossed"))),
        (houndstooth, ((3, 6), (-1, 1))),
    ),
}


def texture_domain(name: str) -> Domain:
    """The domain of textures called `name`, 20 images a class: colours, phase, turn and scale differ.

    Training crops nothing and mirrors nothing: scale and direction are what some classes differ in.
    """
    return Domain(
        name=name,
        class_images={
            " ".join(map(str, (family.__name__, *values))): LazyImages(
                partial(draw_texture, name, family, values), IMAGES
            )
            for family, ranges in TEXTURE_DOMAINS[name]
            for values in product(*ranges)
        },
        augment=frozenset(("colour",)),
    )


def draw_texture(domain: str, family: Family, values: tuple[float | str, ...], number: int) -> Image.Image:
    """Image `number` of a class of textures."""
    random = random_for(domain, family.__name__, *values, number)
    x, y = plane(
        degrees=random.uniform(-8, 8),
        scale=random.uniform(0.9, 1.12),
        offset=(random.uniform(-0.3, 0.3), random.uniform(-0.3, 0.3)),
    )
    first, second = any_colour(random), any_colour(random)
    while abs(first.mean() - second.mean()) < LEAST_CONTRAST:
        second = any_colour(random)
    colours = blend(np.clip(family(x, y, random, *values), 0, 1), first, second)
    return image_of(colours + random.normal(0, random.uniform(0, 0.12), (*x.shape, 1)))
