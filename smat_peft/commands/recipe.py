"""A recipe: a YAML file of a command's arguments."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

import yaml

from smat_peft.errors import ConfigurationError


def leading_recipes(argv: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The recipes that a command line begins with, and the words after them."""
    recipes = list(takewhile(lambda word: not word.startswith("-"), argv))
    return list(map(Path, recipes)), list(argv[len(recipes) :])


def recipe_words(paths: Iterable[Path], parser: argparse.ArgumentParser) -> list[str]:
    """Recipes as the words of a command line, so that the parser checks types and choices as it does for those.

    Args:
        paths: Arguments as `name: value`, one a line; what a later file says of an argument stands for what an earlier
            one says. A value may be a list; `null`, or a list of nothing, leaves an argument at its default.
        parser: Knows the arguments.

    Raises:
        ConfigurationError: A file is missing or no YAML, or holds an unknown argument or a value of a wrong type.
    """
    words: dict[str, list[str]] = {}
    for path in paths:
        words |= _words_of(path, parser)
    return list(chain.from_iterable(words.values()))


def _words_of(path: Path, parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    if not path.is_file():
        raise ConfigurationError(f"there is no recipe {path}; give a YAML file, or arguments that begin with --")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise ConfigurationError(f"{path} must hold arguments as `name: value`, one a line")
    actions = {action.dest: action for action in parser._actions if action.dest != "help"}
    unknown = sorted(str(name) for name in recipe if name not in actions)
    if unknown:
        raise ConfigurationError(f"{path} holds arguments that do not exist: {', '.join(unknown)}")
    try:
        words = {name: _words(actions[name], value) for name, value in recipe.items()}
        parser.exit_on_error = False
        parser.parse_known_args(list(chain.from_iterable(words.values())))
    except argparse.ArgumentError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    finally:
        parser.exit_on_error = True
    return words


def _words(action: argparse.Action, value: Any) -> list[str]:
    if value is None or value == []:
        return []
    values = value if isinstance(value, list) else [value]
    if any(isinstance(each, dict | list | None) for each in values):
        raise argparse.ArgumentError(action, f"a value or a list of values is wanted, got {value!r}")
    if not isinstance(value, list):
        return [f"--{action.dest}={_word(value)}"]
    if action.nargs != "+":
        raise argparse.ArgumentError(action, f"one value is wanted, got the list {value!r}")
    return [f"--{action.dest}", *map(_word, value)]


def _word(value: Any) -> str:
    if isinstance(value, bool):  # YAML reads the word `no` as a truth value, and it is also a choice of mixed_precision
        return "yes" if value else "no"
    return str(value)
