"""Adapters that travel: the card that says what one is and how to use it, and those of the method's authors."""

from smat_peft.sharing.reference import load_reference_checkpoint

__all__ = ["load_reference_checkpoint"]
