"""Flags of verbs that have their own: numbers with bounds, and paths."""

from __future__ import annotations

import argparse
import math
import pathlib
from collections.abc import Callable
from typing import NoReturn

from lm_research.common.paths import path_of
from lm_research.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are ConfigErrors."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:].rstrip('.')}. --help shows the usage.")


def whole(low: int = 1, high: int = 2**31 - 1) -> Callable[[str], int]:
    """The type of a flag that is a whole number from `low` to `high`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # of more than 4300 digits too
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}")
        return value

    return read


def number(low: float = 0.0, high: float = 1e15) -> Callable[[str], float]:
    """The type of a flag that is a number from `low` to `high`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {low:g} to {high:g}")
        return value

    return read


def path(text: str) -> pathlib.Path:
    """The type of a flag that is a path; see `path_of`."""
    try:
        return path_of(text, "the path")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error


def path_text(text: str) -> str:
    """The type of a flag that is a path, or a pattern of paths, and stays as it was typed but for `~`."""
    found = path(text)
    return str(found) if text.startswith("~") else text
