"""What commands print on stderr: errors and warnings of one line each."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import pytest

from smat_peft.commands.console import run_command
from smat_peft.errors import DataError


def complain(_: Sequence[str]) -> None:
    warnings.warn("`is_gradient_checkpointing` is deprecated and will be removed", FutureWarning, stacklevel=1)
    warnings.warn("two domains share a class", stacklevel=1)
    raise DataError("a domain is missing")


def test_a_warning_and_an_error_are_a_line_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    form = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # pytest keeps warnings to itself; Python's own way is to print them
        monkeypatch.setattr(
            warnings, "showwarning", lambda *found, **_: print(warnings.formatwarning(*found[:4]), end="")
        )
        assert run_command(complain, []) == DataError.exit_status
    printed = capsys.readouterr()
    assert printed.out == "warning: two domains share a class\n"
    assert printed.err == "error: a domain is missing\n"
    assert warnings.formatwarning is form
