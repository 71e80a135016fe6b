"""Classifying with a task's weights: adaptation to a support set, and a classifier for one's own images."""

from smat_peft.few_shot.adaptation import AdaptedTask, adapt_to_support, classify_queries
from smat_peft.few_shot.classifier import FewShotClassifier
from smat_peft.few_shot.fine_tuning import Adaptation
from smat_peft.few_shot.loading import load_backbone, load_model

__all__ = [
    "Adaptation",
    "AdaptedTask",
    "FewShotClassifier",
    "adapt_to_support",
    "classify_queries",
    "load_backbone",
    "load_model",
]
