"""What commands print on stderr: errors and warnings of one line each."""

from __future__ import annotations

import argparse
import errno
import warnings
from collections.abc import Sequence

import pytest

from smat_peft.commands.console import HelpFormatter, number_or, run_command
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


def test_what_may_not_be_read_is_named_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    def read(_: Sequence[str]) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "photos/cats")

    assert run_command(read, []) == DataError.exit_status
    assert capsys.readouterr().err == "error: photos/cats: Permission denied\n"


def test_help_tells_a_default_that_says_something() -> None:
    parser = argparse.ArgumentParser(formatter_class=HelpFormatter)
    for name, default in (("--steps", 50), ("--seed", 0), ("--output", None), ("--compare", False)):
        parser.add_argument(name, default=default, help="what it is")
    told = [line.partition("what it is")[2] for line in parser.format_help().splitlines()[-4:]]
    assert told == [" (default: 50)", " (default: 0)", "", ""]


def test_an_argument_that_is_neither_a_number_nor_one_of_the_words_says_what_it_could_be(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=number_or("auto", "validation"))
    assert [parser.parse_args(["--rate", given]).rate for given in ("auto", "0", "1e-3")] == ["auto", 0.0, 0.001]
    with pytest.raises(SystemExit):
        parser.parse_args(["--rate", "0.0.1"])
    assert "argument --rate: must be a number or auto or validation, got '0.0.1'" in capsys.readouterr().err
