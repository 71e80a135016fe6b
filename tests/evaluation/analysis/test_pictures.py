"""Pictures of an analysis: their text can be read, however many domains and experts there are."""

import itertools
import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from smat_peft.evaluation.analysis.alignment import Alignment, draw_alignment
from smat_peft.evaluation.analysis.capacity import Capacity, draw_capacity_by_depth, draw_capacity_by_layer_type
from smat_peft.evaluation.analysis.layers import LAYER_TYPES
from smat_peft.evaluation.analysis.learning import LearningCurve, draw_learning_curves
from smat_peft.evaluation.analysis.overlap import Overlap, draw_overlap
from smat_peft.evaluation.analysis.pictures import write_numbers
from smat_peft.evaluation.analysis.selection import draw_selection
from smat_peft.evaluation.analysis.sweep import SweepCell, draw_sweep
from smat_peft.evaluation.routing import Routing
from smat_peft.evaluation.statistics import Estimate

RANDOM = np.random.default_rng(0)


def names(count):
    return [f"domain-{number:02}" for number in range(count)]


def capacities(parts, experts):
    return [Capacity(part, 10**number, RANDOM.random(experts)) for number, part in enumerate(parts)]


def draw_choices(weights, path):
    roles = {name: ("id", "dev_ood")[number % 2] for number, name in enumerate(weights)}
    draw_selection(Routing(weights), roles, path)


def choices(domains, experts):
    return {name: RANDOM.dirichlet(np.ones(experts), 3) for name in names(domains)}


def overlap(experts):
    matrix = np.full((experts, experts), 0.4) + np.eye(experts) * 0.6
    return Overlap(matrix, matrix / 2, matrix / 1.5)


def alignment(domains, experts):
    cosines = RANDOM.uniform(-0.2, 0.6, (2, 1 + experts, domains, domains))
    return Alignment(names(domains), *(cosines + cosines.swapaxes(2, 3)) / 2)


def curves(count):
    labels = ["SMAT", "without teachers", "dense", "dense with teachers"][:count]
    estimates = [Estimate(0.6 + 0.01 * step, 0.01, 9) for step in range(7)]
    return [
        LearningCurve(label, list(range(0, 561, 80)[:7]), {"id": estimates, "dev_ood": estimates}) for label in labels
    ]


def cells(sparsities, experts, seeds=1):
    grid = itertools.product(sparsities, experts, range(seeds))
    return [
        SweepCell(s, m, 0.05, k, 0.7, 0.7 + RANDOM.random() / 20, 0.01, 0.8, 0.01, s, s / 2, 60.0) for s, m, k in grid
    ]


BLOCKS = ["before", *map(str, range(12)), "after"]
STAGES = ["before", *(f"{stage}.{block}" for stage in range(4) for block in range(9)), "after"]
SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
PICTURES = {
    "capacity": (draw_capacity_by_layer_type, capacities(LAYER_TYPES, 8)),
    "capacity of one expert": (draw_capacity_by_layer_type, capacities(LAYER_TYPES[:3], 1)),
    "capacity of one layer type": (draw_capacity_by_layer_type, capacities(LAYER_TYPES[:1], 2)),
    "depth": (draw_capacity_by_depth, capacities(BLOCKS, 8)),
    "depth of stages": (draw_capacity_by_depth, capacities(STAGES, 16)),
    "selection": (draw_choices, choices(20, 16)),
    "selection of two": (draw_choices, choices(2, 2)),
    "overlap": (draw_overlap, overlap(16)),
    "overlap of two": (draw_overlap, overlap(2)),
    "alignment": (draw_alignment, alignment(20, 16)),
    "alignment of two": (draw_alignment, alignment(2, 1)),
    "learning": (draw_learning_curves, curves(4)),
    "learning of one run": (draw_learning_curves, curves(1)),
    "sweep": (draw_sweep, cells(SPARSITIES, (1, 4, 8, 16))),
    "sweep of two cells": (draw_sweep, cells((0.0, 0.9), (4,))),
    "sweep of seeds": (draw_sweep, cells(SPARSITIES, (1, 4), seeds=3)),
}


def texts(figure):
    """Tick labels, axis labels, titles and legends with their boxes, as they were drawn last."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # at the figure's own resolution, after files of other ones
    renderer = canvas.get_renderer()
    places = list(figure.axes)
    shown = [place.xaxis.label for place in places] + [place.yaxis.label for place in places]
    shown += [place.title for place in places]
    for place in places:
        for axis in (place.xaxis, place.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [(tick.get_loc(), tick.label1) for tick in axis.get_major_ticks()]
            shown += [label for at, label in ticks if low - 1e-9 <= at <= high + 1e-9 and label.get_visible()]
    for legend in [*figure.legends, *(each for part in figure.subfigs for each in part.legends)]:
        shown += legend.get_texts()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in shown if text.get_text().strip()]
    return [(text, box) for text, box in boxes if box.width > 0]


@pytest.mark.parametrize("name", PICTURES)
def test_all_text_is_inside_the_picture_and_none_over_another(name, tmp_path, figures):
    draw, numbers = PICTURES[name]
    draw(numbers, tmp_path / "picture")
    written = texts(figures[-1])
    assert len(written) > 5
    page = figures[-1].bbox
    for text, box in written:
        assert min(box.x0, box.y0) >= -1, text
        assert box.x1 <= page.x1 + 1, text
        assert box.y1 <= page.y1 + 1, text
    for (one, box), (other, its_box) in itertools.combinations(written, 2):
        inside = box.padded(-1), its_box.padded(-1)
        assert not inside[0].overlaps(inside[1]), (one, other)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_comes_as_vectors_and_as_pixels_and_is_not_empty(name, tmp_path, figures):
    draw, numbers = PICTURES[name]
    draw(numbers, tmp_path / "picture")
    assert (tmp_path / "picture.pdf").read_bytes().startswith(b"%PDF")
    pixels = np.asarray(Image.open(tmp_path / "picture.png").convert("L"))
    assert pixels.shape[1] == 1400
    for place in figures[-1].axes:
        box = place.get_window_extent()
        dots = figures[-1].dpi
        rows = slice(*(int(len(pixels) - at * 200 / dots) for at in (box.y1, box.y0)))
        inside = pixels[rows, int(box.x0 * 200 / dots) : int(box.x1 * 200 / dots)]
        assert (inside < 250).mean() > 0.003, place.get_xlabel()


def test_equal_numbers_give_equal_files(tmp_path):
    for place in ("one", "other"):
        draw_overlap(overlap(3), tmp_path / place)
    assert (tmp_path / "one.pdf").read_bytes() == (tmp_path / "other.pdf").read_bytes()


def test_the_numbers_of_a_picture_are_json_without_what_json_does_not_know(tmp_path):
    write_numbers(tmp_path / "numbers", [Capacity("norms", 4, np.array([0.25, np.nan]))])
    written = json.loads((tmp_path / "numbers.json").read_text(), parse_constant=pytest.fail)
    assert written == [{"part": "norms", "size": 4, "shares": [0.25, None]}]


def test_domains_that_choose_alike_are_neighbours(tmp_path, figures):
    weights = {"a": [[1, 0], [0.8, 0.2]], "b": [[0.1, 0.9]], "c": [[0.8, 0.2]]}
    draw_choices({name: np.array(each) for name, each in weights.items()}, tmp_path / "picture")
    labels = [label.get_text() for label in figures[-1].axes[1].get_yticklabels()]
    assert abs(labels.index("a (ID)") - labels.index("c (ID)")) == 1
    assert "b (dev-OOD)" in labels


def test_the_mean_over_seeds_is_drawn_with_its_seeds_and_a_single_seed_with_its_interval(tmp_path, figures):
    draw_sweep(cells((0.0, 0.9), (4,), seeds=2), tmp_path / "seeds")
    draw_sweep(cells((0.0, 0.9), (4,)), tmp_path / "single")
    several, single = (figures[number].axes[0] for number in (1, 3))
    assert len(several.lines) == 3
    assert not several.containers
    assert len(single.containers) == 1
