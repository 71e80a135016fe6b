"""Training curves: what is drawn, and that a picture comes out."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from smat_peft.errors import DataError
from smat_peft.evaluation import plots


def log(steps):
    for step in range(1, steps + 1):
        record = {"step": step, "loss": 1 / step, "accuracy": 1 - 1 / (step + 1), "sparsity": step / 1000}
        if step % 10 == 0:
            record["validation_accuracy"] = 0.5
        yield record


def test_a_log_becomes_a_picture_of_three_panels(tmp_path, figures):
    plots.plot_curves(list(log(100)), tmp_path / "curves.png")
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("L"))
    assert picture.shape[1] > 2 * picture.shape[0]
    thirds = np.array_split(picture, 3, axis=1)
    assert all((third < 200).mean() > 0.01 for third in thirds)
    assert [axes.get_title() for axes in figures[0].axes] == ["Loss", "Query accuracy", "Sparsity of the experts"]


def test_the_legend_says_how_far_curves_are_smoothed(tmp_path, figures):
    plots.plot_curves(list(log(100)), tmp_path / "curves.png")
    loss, accuracy, sparsity = ([t.get_text() for t in axes.get_legend().get_texts()] for axes in figures[0].axes)
    assert loss == ["training, mean of 5 points"]
    assert accuracy == ["training, mean of 5 points", "validation"]
    assert sparsity == ["training"]


def test_a_smoothed_point_is_the_mean_of_the_points_up_to_it(tmp_path, figures):
    records = list(log(100))
    plots.plot_curves(records, tmp_path / "curves.png")
    smooth = figures[0].axes[0].lines[1].get_ydata()
    assert smooth[0] == pytest.approx(records[0]["loss"])
    assert smooth[50] == pytest.approx(np.mean([record["loss"] for record in records[46:51]]))


def test_validation_is_drawn_where_it_was_measured(tmp_path, figures):
    plots.plot_curves(list(log(100)), tmp_path / "curves.png")
    validation = figures[0].axes[1].lines[-1]
    assert list(validation.get_xdata()) == list(range(10, 101, 10))
    assert set(validation.get_ydata()) == {50.0}


def test_a_loss_that_was_not_finite_leaves_the_curve_whole(tmp_path, figures):
    records = list(log(40))
    records[20]["loss"] = math.nan
    plots.plot_curves(records, tmp_path / "curves.png")
    assert np.isfinite(figures[0].axes[0].lines[-1].get_ydata()).all()
    assert len(figures[0].axes[0].lines[-1].get_ydata()) == 39


def test_a_panel_without_values_is_left_out(tmp_path, figures):
    plots.plot_curves([{"step": 1, "loss": 1.0}], tmp_path / "curves.png")
    assert [axes.get_title() for axes in figures[0].axes] == ["Loss"]


def test_an_empty_log_is_an_error_and_writes_nothing(tmp_path):
    with pytest.raises(DataError, match="training log"):
        plots.plot_curves([], tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


def test_the_global_state_of_pyplot_is_left_alone(tmp_path):
    plots.plot_curves(list(log(10)), tmp_path / "curves.png")
    assert plt.get_fignums() == []
