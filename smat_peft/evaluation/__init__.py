"""How good is it: predictors on episodes, intervals, tables, pictures."""

from smat_peft.evaluation.predictors import (
    Prediction,
    Predictor,
    default_predictors,
    mean_expert_weights,
    prototype_predictor,
)
from smat_peft.evaluation.protocol import EvaluationDomain, evaluate
from smat_peft.evaluation.records import Evaluation, Record, Role
from smat_peft.evaluation.report import format_report, report_as_dict
from smat_peft.evaluation.statistics import Estimate

__all__ = [
    "Estimate",
    "Evaluation",
    "EvaluationDomain",
    "Prediction",
    "Predictor",
    "Record",
    "Role",
    "default_predictors",
    "evaluate",
    "format_report",
    "mean_expert_weights",
    "prototype_predictor",
    "report_as_dict",
]
