"""Characters of the world's scripts, drawn with the fonts that matplotlib ships: a class is a character."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from smat_peft.episodes.builtin.characters import CHARACTERS
from smat_peft.episodes.builtin.lazy import SIDE, LazyImages, random_for
from smat_peft.episodes.domain import Domain

FACES = (
    *(f"DejaVuSans{style}.ttf" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}.ttf" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}.ttf" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}.ttf" for style in ("", "Bol", "Italic", "BolIta")),
)
IMAGES_PER_FACE = 3
MOST_IMAGES = 20  # of a class, however many faces it has
EM = 72  # pixels; glyphs are drawn about as large as an image has sub-pixels
FINENESS = 3  # sub-pixels per pixel and axis


def glyph_domain(name: str) -> Domain:
    """The domain of one script.

    A character of 4 faces (Hebrew, Arabic, Canadian syllabics) has 12 images, one of 7 or more faces has 20. No image
    is mirrored or cropped in training: that would draw another character.
    """
    return Domain(
        name=name,
        class_images={
            character: LazyImages(partial(draw_glyph, name, character), images_of(character))
            for character in CHARACTERS[name]
        },
        augment=frozenset(("colour",)),
    )


def images_of(character: str) -> int:
    """How many images the class of `character` has."""
    return min(MOST_IMAGES, IMAGES_PER_FACE * len(faces_of(character)))


def faces_of(character: str) -> tuple[str, ...]:
    """The files of [`FACES`] that hold `character`."""
    return tuple(face for face in FACES if ord(character) in _code_points(face))


def draw_glyph(domain: str, character: str, number: int) -> Image.Image:
    """Image `number` of a class: faces in turn; size, rotation, position, polarity and grey levels at random."""
    random = random_for(domain, character, number)
    faces = faces_of(character)
    ink = place(
        outline(character, faces[number % len(faces)]),
        longest=random.uniform(18, 26),
        degrees=random.uniform(-15, 15),
        offset=(random.uniform(-2.5, 2.5), random.uniform(-2.5, 2.5)),
    )
    dark, light = random.uniform(0, 70), random.uniform(180, 255)
    foreground, background = (dark, light) if random.random() < 0.5 else (light, dark)
    grey = background + (foreground - background) * (np.asarray(ink, dtype=np.float64) / 255)
    return Image.fromarray(np.round(grey).astype(np.uint8)).convert("RGB")


@lru_cache(maxsize=4096)
def outline(character: str, face: str) -> Image.Image:
    """The ink of a character, white on black, cut to its bounding box."""
    canvas = Image.new("L", (3 * EM, 3 * EM))
    ImageDraw.Draw(canvas).text((EM, 2 * EM), character, fill=255, font=_font(face), anchor="ls")
    return canvas.crop(canvas.getbbox())


def place(
    ink: Image.Image, longest: float, degrees: float = 0.0, offset: tuple[float, float] = (0.0, 0.0)
) -> Image.Image:
    """Ink of which the longer side measures `longest` pixels, turned, `offset` pixels off the middle of an image."""
    scale = max(ink.size) / (longest * FINENESS)  # pixels of ink for a sub-pixel of the image
    cosine, sine = np.cos(np.radians(degrees)) * scale, np.sin(np.radians(degrees)) * scale
    middle = np.array(offset) * FINENESS + SIDE * FINENESS / 2
    start = np.array(ink.size) / 2 - (cosine * middle[0] - sine * middle[1], sine * middle[0] + cosine * middle[1])
    fine = ink.transform(
        (SIDE * FINENESS, SIDE * FINENESS),
        Image.Transform.AFFINE,
        (cosine, -sine, start[0], sine, cosine, start[1]),
        resample=Image.Resampling.BICUBIC,
    )
    return fine.resize((SIDE, SIDE), Image.Resampling.BOX)


@lru_cache
def _code_points(face: str) -> frozenset[int]:
    return frozenset(FT2Font(_path(face)).get_charmap())


@lru_cache
def _font(face: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_path(face), EM, layout_engine=ImageFont.Layout.BASIC)


def _path(face: str) -> str:
    return str(Path(get_data_path()) / "fonts" / "ttf" / face)
