"""SMATSide: the layer of a module that has children, for the parameters it owns itself."""

from __future__ import annotations

from torch import Tensor, nn

from smat_peft.tuner.layer import SMATLayer


class SMATSide(SMATLayer):
    """Beside a module that has children, for the parameters it owns itself, so that no path changes.

    It hangs on its owner as the child [`SMATSide.CHILD`] and shadows the owner's parameters by hooks.
    """

    CHILD = "smatside"  # PEFT skips modules whose name holds the prefix "smat_" when it deletes an adapter

    def _attach(self, owner: nn.Module) -> None:
        self.__dict__["owner"] = owner  # not a child: the owner is this module's parent
        self.hold_during_calls_of(owner)
        setattr(owner, self.CHILD, self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Its inputs: where the owner is a Sequential, which calls its children one after another."""
        return inputs

    def get_base_layer(self) -> nn.Module:
        """The owner of the parameters."""
        owner: nn.Module = self.__dict__["owner"]
        return owner

    def let_go(self) -> None:
        """Leave the owner as it was before."""
        super().let_go()
        delattr(self.get_base_layer(), self.CHILD)
