"""The picture of an evaluation: every domain, every predictor, every panel."""

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from smat_peft.evaluation import interval_plot
from smat_peft.evaluation.records import Evaluation, Record


def evaluation(predictors):
    domains = {"greek": "id", "hebrew": "dev_ood", "digits": "test_ood"}
    return Evaluation(
        [
            Record(name, domain, role, index, 5, 5, 25, 0.1 * place + 0.02 * index)
            for domain, role in domains.items()
            for index in range(4)
            for place, name in enumerate(predictors)
        ]
    )


def test_each_domain_has_a_row_and_each_evaluation_a_panel(tmp_path, figures):
    one = evaluation(["backbone", "SMAT"])
    interval_plot.plot_accuracies({"prototype": one, "lora": one}, tmp_path / "picture.png")
    left, right = figures[0].axes
    assert [axes.get_title() for axes in (left, right)] == ["prototype", "lora"]
    assert [label.get_text() for label in left.get_yticklabels()] == [
        *("greek (ID)", "hebrew (dev-OOD)", "digits (test-OOD)"),
    ]
    assert left.yaxis_inverted()
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["backbone", "SMAT"]
    points = [container.lines[0].get_xdata(orig=False) for container in left.containers]
    np.testing.assert_allclose(points, [[3, 3, 3], [13, 13, 13]])
    assert (np.asarray(Image.open(tmp_path / "picture.png").convert("L")) < 200).mean() > 0.005
    assert plt.get_fignums() == []


def test_predictors_differ_in_colour_and_shape():
    assert len({colour for colour, _ in interval_plot.STYLES}) == len(interval_plot.STYLES)
    assert len({marker for _, marker in interval_plot.STYLES}) == len(interval_plot.STYLES)
