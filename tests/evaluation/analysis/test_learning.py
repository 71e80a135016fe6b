"""When runs are at a level of accuracy."""

from smat_peft.evaluation.analysis.learning import LearningCurve, reached, reached_table
from smat_peft.evaluation.statistics import Estimate


def curve(label, *accuracies, every=80):
    estimates = [Estimate(accuracy, 0.01, 9) for accuracy in accuracies]
    return LearningCurve(label, [every * number for number in range(len(accuracies))], {"id": estimates})


def test_a_level_is_reached_where_a_mean_is_first_at_or_above_it():
    found = curve("a", 0.5, 0.7, 0.6, 0.8)
    assert found.first_at("id", 0.6) == 80
    assert found.first_at("id", 0.8) == 240
    assert found.first_at("id", 0.81) is None
    assert found.first_at("id", 0.4) == 0  # the backbone is there


def test_every_run_is_compared_to_the_level_that_every_run_ends_with():
    ours, dense = curve("SMAT", 0.5, 0.7, 0.8), curve("dense", 0.5, 0.8, 0.9, 0.7, every=40)
    of_ours, of_dense = reached([ours, dense])
    assert (of_ours.end_of, of_ours.level, of_ours.tasks) == ("SMAT", 0.8, {"SMAT": 160, "dense": 40})
    assert (of_dense.end_of, of_dense.level, of_dense.tasks) == ("dense", 0.7, {"SMAT": 80, "dense": 40})
    never = reached([curve("low", 0.5, 0.6), dense])[1]
    assert never.tasks == {"low": None, "dense": 40}
    assert "| dense, ID " in reached_table([never])
    assert "not reached" in reached_table([never])
