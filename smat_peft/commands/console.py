"""What all commands share on the console: help that keeps its layout, kinds of arguments, and errors of one line."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from smat_peft.errors import RunStoppedError, SmatError

INTERRUPTED = 130  # what shells call the end by Ctrl-C
NOT_READ = 141  # and the end where nobody reads what is written, as after `| head`


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the description as it is written and adds each argument's default, where that says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_told = action.default is None or action.default is False or "(default)" in (action.help or "")
        return action.help if is_told else super()._get_help_string(action)


def number_or(*words: str) -> Callable[[str], float | str]:
    """A type of argument: a number, or one of some words."""

    def parse(text: str) -> float | str:
        try:
            return text if text in words else float(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"must be a number or {' or '.join(words)}, got {text!r}") from error

    return parse


def run_command(command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Run a command; an error that the user can mend is one line on stderr, and the exit status says so.

    A run that was stopped is no error: what to do is all that its line says. Nothing is said where nobody reads the
    output any more. A warning is one line, too, and one of PEFT's and transformers' own is left out.
    """
    form = warnings.formatwarning
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
            command(argv)
            sys.stdout.flush()
    except SmatError as error:
        print(error if isinstance(error, RunStoppedError) else f"error: {error}", file=sys.stderr)
        return error.exit_status
    except PermissionError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return SmatError.exit_status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        return NOT_READ
    finally:
        warnings.formatwarning = form
    return 0
