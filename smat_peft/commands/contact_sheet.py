"""A page with every image that was classified, what it was taken for, and how surely: one HTML file."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

import numpy as np

from smat_peft.commands.answers import Answers
from smat_peft.episodes.image_files import open_image
from smat_peft.few_shot.classifier import NONE_OF_THESE
from smat_peft.files import write_text

THUMBNAIL = (160, 160)
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); gap: 1rem }}
figure {{ margin: 0; padding: .6rem; border: 1px solid #bbb; border-radius: 4px; overflow-wrap: anywhere }}
figure.wrong {{ border: 3px solid #D55E00 }}
img {{ display: block; height: 160px; max-width: 100%; object-fit: contain; margin: 0 auto .4rem }}
meter {{ width: 100% }}
small {{ color: #666 }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
<main>
{figures}
</main>
</html>
"""
FIGURE = """<figure{kind}><img src="data:image/jpeg;base64,{picture}" alt="">
<b>{label}</b>{share}<meter value="{probability:.3f}"></meter>
{note}<small>{name}</small></figure>"""


def write_contact_sheet(path: Path, answers: Answers, title: str) -> None:
    """Write the page: the least sure images first, wrong ones with a thick border where the true classes are known.

    Raises:
        DataError: An image cannot be read.
        CheckpointError: The page cannot be written.
    """
    order = np.argsort(answers.confidence, kind="stable")
    summary = "The least sure first. Probabilities rank the classes; nothing has calibrated them."
    if answers.true_classes:
        summary = f"{answers.accuracy().capitalize()}; wrong ones have a thick border. {summary}"
    figures = "\n".join(_figure(answers, int(number)) for number in order)
    write_text(path, PAGE.format(title=escape(title), summary=escape(summary), figures=figures))


def _figure(answers: Answers, number: int) -> str:
    label, second = answers.labels[number], answers.runners_up[number]
    true_class = answers.true_classes[number] if answers.true_classes else label
    wrong = label != true_class
    notes = [f"in folder {true_class}"] if wrong else []
    notes.append(f"or {answers.classes[second]} {answers.probabilities[number, second]:.0%}")
    return FIGURE.format(
        kind=' class="wrong"' if wrong else "",
        picture=_thumbnail(answers.paths[number]),
        label=escape(label),
        share="" if label == NONE_OF_THESE else f" {answers.confidence[number]:.0%}",
        probability=answers.confidence[number],
        note="".join(f"{escape(note)}<br>" for note in notes),
        name=escape(answers.images[number]),
    )


def _thumbnail(path: Path) -> str:
    image = open_image(path)
    image.thumbnail(THUMBNAIL)
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=80)
    return base64.b64encode(packed.getvalue()).decode("ascii")
