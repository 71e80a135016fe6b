"""What all pictures of an analysis share: size and fonts fit for print, colours, heat maps, numbers beside."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from smat_peft.evaluation.palette import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION

Array = NDArray[np.float64]

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = "osD^vPX*"

PRINT: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": 200,
}
FULL_WIDTH = 7.0  # inches, of a page's text
LEAST_HEIGHT = 2.4  # inches: room for the label of a vertical axis
MOST_LETTERS = 40  # of labels side by side; more are turned upright


@contextmanager
def picture(path: Path, height: float, width: float = FULL_WIDTH) -> Iterator[Figure]:
    """A figure to draw into, saved as `path.pdf` and `path.png` at the end of the block; sizes are in inches."""
    with rc_context(PRINT):
        figure = Figure(figsize=(width, max(height, LEAST_HEIGHT)), layout="constrained")
        yield figure
        figure.savefig(f"{path}.pdf", metadata={"CreationDate": None})  # the same numbers give the same file
        figure.savefig(f"{path}.png")


def write_numbers(path: Path, numbers: Any) -> None:
    """Write what a picture shows as `path.json`: dataclasses, arrays, mappings and sequences; NaN becomes null."""
    Path(f"{path}.json").write_text(json.dumps(_plain(numbers), indent=1), encoding="utf-8")


def heat_map(
    axes: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    figures: bool = True,
    **settings: Any,
) -> Any:
    """A matrix as colours, with `figures` in the cells where there is room; `settings` are those of `imshow`.

    Returns:
        What a colour bar is made for.
    """
    image = axes.imshow(values, aspect="auto", interpolation="nearest", **{"cmap": "cividis"} | settings)
    axes.set_xticks(range(len(columns)), columns, rotation=90 if sum(map(len, columns)) > MOST_LETTERS else 0)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if figures and len(columns) <= 16:
        lowest, highest = image.get_clim()
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = value < (lowest + highest) / 2
                text = f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.1f}"
                size = 6 if len(columns) <= 8 else 5
                axes.text(column, row, text, ha="center", va="center", size=size, color="w" if dark else "k")
    return image


def pairs(matrix: Array) -> Array:
    """The values above the diagonal of a symmetric matrix."""
    return matrix[np.triu_indices(len(matrix), 1)]


def _plain(numbers: Any) -> Any:
    if dataclasses.is_dataclass(numbers) and not isinstance(numbers, type):
        return {field.name: _plain(getattr(numbers, field.name)) for field in dataclasses.fields(numbers)}
    if isinstance(numbers, Mapping):
        return {str(name): _plain(value) for name, value in numbers.items()}
    if isinstance(numbers, np.ndarray):
        return _plain(numbers.tolist())
    if isinstance(numbers, list | tuple):
        return [_plain(value) for value in numbers]
    if isinstance(numbers, float):
        return float(f"{numbers:.6g}") if math.isfinite(numbers) else None
    return numbers
