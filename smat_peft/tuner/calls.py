"""Calls of a module with other tensors in place of its parameters, which shadow them and are taken away after it.

During calls of the module itself; and where its parent reads its parameters, during calls of the parent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from smat_peft.errors import ConfigurationError
from smat_peft.tuner.shadow import Shadowed, shadow, unshadow

NO_THREAD, COMPILING = 0, -1  # in place of a thread's identifier


class ShadowingCalls(nn.Module):
    """Calls the module that it wraps with other tensors in place of its parameters; which, a subclass says."""

    base_layer: nn.Module
    get_base_layer: Callable[[], nn.Module]
    effective_parameters: Callable[[], dict[str, Tensor]]  # by name; those left out keep their own values
    prepare_call: Callable[[], None]  # what is done before each call

    def __init__(self) -> None:
        super().__init__()
        self.hooks: tuple[RemovableHandle, ...] = ()
        self._held: Shadowed | None = None  # during a call of the module that it is held during
        self._thread = NO_THREAD

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapped module with its effective parameters.

        Raises:
            ConfigurationError: A call in another thread is under way.
        """
        module = self.base_layer
        if self._held is not None:  # they are in place
            return module(*args, **kwargs)
        self._begin()
        before: Shadowed = {}
        try:
            before = shadow(module, self.effective_parameters())
            return module(*args, **kwargs)
        finally:
            unshadow(module, before)
            self._thread = NO_THREAD

    def hold_during_calls_of(self, module: nn.Module) -> None:
        """Have the effective parameters in place during every call of a module, until [`let_go`]."""
        self.hooks = (
            module.register_forward_pre_hook(self._hold),
            module.register_forward_hook(self._release, always_call=True),
        )
        torch.compiler.reset()  # code compiled for a module of this class does not ask whether it has hooks now

    def let_go(self) -> None:
        """Undo [`hold_during_calls_of`]."""
        self.recover()
        for hook in self.hooks:
            hook.remove()

    def recover(self) -> None:
        """Put the parameters back where a call was interrupted: after a KeyboardInterrupt no hook is called."""
        if self._held is not None:
            unshadow(self.get_base_layer(), self._held)
            self._held, self._thread = None, NO_THREAD

    def _hold(self, _module: nn.Module, _inputs: Any) -> None:
        self._begin()
        if self._held is not None:  # by a call that was interrupted
            unshadow(self.get_base_layer(), self._held)
        self._held = {}
        self._held = shadow(self.get_base_layer(), self.effective_parameters())

    def _release(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        if self._thread == _this_thread():
            self.recover()

    def _begin(self) -> None:
        thread = _this_thread()
        if self._thread not in (NO_THREAD, thread):
            raise ConfigurationError(
                "two threads call this model at once; its task is one for all: give each thread a copy.deepcopy of the "
                "model, or let one wait for the other"
            )
        self._thread = thread
        self.prepare_call()


def _this_thread() -> int:
    """The thread that calls; code that is compiled does not ask."""
    return COMPILING if torch.compiler.is_compiling() else threading.get_ident()
