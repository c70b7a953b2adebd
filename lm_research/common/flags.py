"""Types of command-line flags: numbers with bounds, and paths."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
from collections.abc import Callable
from typing import NoReturn, TypeVar

from typing_extensions import override

from lm_research.common.paths import path_of
from lm_research.errors import ConfigError

Number = TypeVar("Number", int, float)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ConfigErrors."""

    @override
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:].rstrip('.')}. --help shows the usage.")


def bounded(kind: type[Number], low: Number, high: Number) -> Callable[[str], Number]:
    """Return the argparse type of a number, int or float, from `low` to `high`."""

    def parse(text: str) -> Number:
        with contextlib.suppress(ValueError):  # not a number, or an int of more than 4300 digits
            if low <= (value := kind(text)) <= high:  # false for NaN
                return value
        whole, form = ("whole ", "d") if kind is int else ("", "g")
        raise argparse.ArgumentTypeError(f"{text!r} is not a {whole}number from {low:{form}} to {high:{form}}")

    return parse


def path(text: str) -> pathlib.Path:
    """Parse a flag that is a path; see `path_of`."""
    try:
        return path_of(text, "the path")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error


def path_text(text: str) -> str:
    """Parse a flag that is a path or a pattern of paths; the text is unchanged except that `~` is expanded."""
    found = path(text)
    return str(found) if text.startswith("~") else text
