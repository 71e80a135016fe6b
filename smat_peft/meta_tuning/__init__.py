"""Learning the experts: the losses of one update, and the run over many."""

from smat_peft.meta_tuning.arguments import MetaTuningArguments
from smat_peft.meta_tuning.learner import MetaLearner
from smat_peft.meta_tuning.trainer import MetaTrainer

__all__ = ["MetaLearner", "MetaTrainer", "MetaTuningArguments"]
