"""What all commands share on the console: help that keeps its layout, and errors of one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from smat_peft.errors import RunStoppedError, SmatError


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the description as it is written and adds each argument's default."""


def run_command(command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Run a command; an error that the user can mend is one line on stderr, and the exit status says so.

    A run that was stopped is no error: what to do is all that its line says.
    """
    try:
        command(argv)
    except SmatError as error:
        print(error if isinstance(error, RunStoppedError) else f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0
