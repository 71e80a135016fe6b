"""SMAT as a PEFT method: configuration, layers, tuner, and tasks."""

from smat_peft.tuner.config import SMATConfig
from smat_peft.tuner.model import SMATModel
from smat_peft.tuner.registration import register

__all__ = ["SMATConfig", "SMATModel", "register"]
