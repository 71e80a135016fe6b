"""Sparse MetA-Tuning (SMAT): few-shot learning with sparse interpolated experts, as a PEFT method.

Importing this package teaches PEFT the method.
"""

import smat_peft.requirements  # noqa: F401 - first, so that what is too old is said

# isort: split
from smat_peft.episodes import Domain, Episode, EpisodeSampler, load_domain
from smat_peft.evaluation import evaluate
from smat_peft.few_shot import FewShotClassifier
from smat_peft.meta_tuning import MetaLearner, MetaTrainer, MetaTuningArguments
from smat_peft.sharing import load_reference_checkpoint, pack_adapter, save_task
from smat_peft.tuner import SMATConfig, SMATModel, register
from smat_peft.version import __version__

register()

__all__ = [
    "Domain",
    "Episode",
    "EpisodeSampler",
    "FewShotClassifier",
    "MetaLearner",
    "MetaTrainer",
    "MetaTuningArguments",
    "SMATConfig",
    "SMATModel",
    "__version__",
    "evaluate",
    "load_domain",
    "load_reference_checkpoint",
    "pack_adapter",
    "save_task",
]
