"""How good is it: predictors on episodes, records, intervals, tables, pictures."""

from smat_peft.evaluation.bootstrap import Interval, PairedDifferences, Verdict, pair_records, verdict
from smat_peft.evaluation.predictors import (
    Prediction,
    Predictor,
    default_predictors,
    feature_predictor,
    mean_expert_weights,
    prototype_predictor,
)
from smat_peft.evaluation.protocol import EvaluationDomain, evaluate
from smat_peft.evaluation.record_files import read_records, write_records
from smat_peft.evaluation.records import Evaluation, Record, Role
from smat_peft.evaluation.report import format_report, report_as_dict
from smat_peft.evaluation.statistics import Estimate

__all__ = [
    "Estimate",
    "Evaluation",
    "EvaluationDomain",
    "Interval",
    "PairedDifferences",
    "Prediction",
    "Predictor",
    "Record",
    "Role",
    "Verdict",
    "default_predictors",
    "evaluate",
    "feature_predictor",
    "format_report",
    "mean_expert_weights",
    "pair_records",
    "prototype_predictor",
    "read_records",
    "report_as_dict",
    "verdict",
    "write_records",
]
