"""Teaching PEFT the method: done once, when smat_peft is imported."""

from __future__ import annotations

from peft import mapping
from peft.utils import peft_types

from smat_peft.tuner.config import SMATConfig, SMATPeftType
from smat_peft.tuner.model import SMATModel


def register() -> None:
    """Register SMAT with PEFT's own function; doing it again changes nothing.

    PEFT looks methods up by a value that equals the string "SMAT", so a str-enumeration of ours serves; only its
    registering function insists on a member of PEFT's own, closed enumeration, and reads it from a module global.

    Raises:
        ImportError: Where the installed PEFT ships a method of that name itself.
    """
    if SMATPeftType.SMAT.value in peft_types.PeftType.__members__:
        raise ImportError("the installed PEFT has a method called SMAT of its own; use it, or install an older PEFT")
    if SMATPeftType.SMAT in mapping.PEFT_TYPE_TO_CONFIG_MAPPING:
        return
    peft_type = peft_types.PeftType
    peft_types.PeftType = SMATPeftType
    try:
        peft_types.register_peft_method(
            name="smat", config_cls=SMATConfig, model_cls=SMATModel, prefix=SMATModel.prefix
        )
    finally:
        peft_types.PeftType = peft_type
