"""Adapters that travel: small files, the card that says what one is and how to use it, and those of the authors."""

from smat_peft.sharing.packed import pack_adapter, save_task
from smat_peft.sharing.reference import load_reference_checkpoint

__all__ = ["load_reference_checkpoint", "pack_adapter", "save_task"]
