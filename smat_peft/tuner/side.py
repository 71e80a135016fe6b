"""SMATSide: the layer of a module that has children, for the parameters it owns itself."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from smat_peft.tuner.layer import SMATLayer
from smat_peft.tuner.shadow import shadow, unshadow


class SMATSide(SMATLayer):
    """Beside a module that has children, for the parameters it owns itself, so that no path changes.

    It hangs on its owner as the child [`SMATSide.CHILD`] and shadows the owner's parameters by hooks.
    """

    CHILD = "smatside"  # PEFT skips modules whose name holds the prefix "smat_" when it deletes an adapter

    def _attach(self, owner: nn.Module) -> None:
        self.__dict__["owner"] = owner  # not a child: the owner is this module's parent
        self._shadowed: list[dict[str, Tensor | None]] = []
        self._hooks = (
            owner.register_forward_pre_hook(self._before_call),
            owner.register_forward_hook(self._after_call, always_call=True),
        )
        setattr(owner, self.CHILD, self)
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # code compiled for a module of this class does not ask whether it has hooks now

    def get_base_layer(self) -> nn.Module:
        """The owner of the parameters."""
        owner: nn.Module = self.__dict__["owner"]
        return owner

    def detach_from_owner(self) -> None:
        """Leave the owner as it was before."""
        for hook in self._hooks:
            hook.remove()
        delattr(self.get_base_layer(), self.CHILD)

    def _before_call(self, owner: nn.Module, _inputs: Any) -> None:
        if self.disable_adapters and self.merged:
            self.unmerge()
        self._shadowed.append(shadow(owner, self.effective_parameters()))

    def _after_call(self, owner: nn.Module, _inputs: Any, _output: Any) -> None:
        unshadow(owner, self._shadowed.pop())
