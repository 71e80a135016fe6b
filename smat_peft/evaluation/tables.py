"""Text tables with aligned columns, for GitHub or a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

TableStyle = Literal["markdown", "text"]


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]], alignment: str, style: TableStyle) -> str:
    """A table, its columns padded to equal widths in either style.

    Args:
        header: Column titles.
        rows: Cells; every row as long as the header.
        alignment: One character a column: `<` flush left (text), `>` flush right (figures).
        style: `"markdown"` for GitHub, `"text"` for a terminal.
    """
    lines = [[cell.replace("|", r"\|") if style == "markdown" else cell for cell in row] for row in (header, *rows)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    columns = list(zip(alignment, widths, strict=True))
    padded = [[f"{cell:{side}{width}}" for cell, (side, width) in zip(line, columns, strict=True)] for line in lines]
    if style == "markdown":
        padded.insert(1, ["-" * (width - 1) + (":" if side == ">" else "-") for side, width in columns])
        return "\n".join(f"| {' | '.join(line)} |" for line in padded)
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(line).rstrip() for line in padded)
