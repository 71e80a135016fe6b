"""Sparse MetA-Tuning (SMAT): few-shot learning with sparse interpolated experts, as a PEFT method.

Importing this package teaches PEFT the method.
"""

from smat_peft.tuner.config import SMATConfig
from smat_peft.tuner.model import SMATModel
from smat_peft.tuner.registration import register
from smat_peft.version import __version__

register()

__all__ = ["SMATConfig", "SMATModel", "__version__"]
