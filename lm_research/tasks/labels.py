"""Labels as files have them, made names: one label however a format writes it, and none where there is none.

JSON's true and 1, a table's "true" and "1", and the 1.0 that a column with gaps makes of 1 are the same labels; null, NaN and blanks are none.
"""

from __future__ import annotations

import datetime
import decimal
import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from lm_research.errors import DataError

_WHOLE = re.compile(r"(-?\d+)\.0+", re.ASCII)
_NONE = ("", "nan", "null")


def label_key(value: Any, known: Collection[str] = ()) -> str:
    """What labels have in common that are one, "" of what is no label.

    Args:
      value: of a field.
      known: names that are labels though they look like none ("null").
    """
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        return (str(int(value)) if value.is_integer() else repr(value)) if math.isfinite(value) else ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, (str, int, decimal.Decimal, datetime.date)):
        return ""
    text = str(value).strip()
    if text.lower() in _NONE and text not in known:
        return ""
    if text.lower() in ("true", "false"):
        return text.capitalize()
    text = found[1] if (found := _WHOLE.fullmatch(text)) else text
    return "0" if text == "-0" else text


def label_names(given: Iterable[tuple[Any, str, str]]) -> dict[str, tuple[str, str]]:
    """Key -> (name, where it was found first), of (value, key, where) one after another.

    The name of a label that is a text, written alike everywhere, is that text, and else the key.
    """
    found: dict[str, tuple[str, str]] = {}
    for value, key, where in given:
        spelled = value.strip() if isinstance(value, str) else key
        name, first = found.get(key, (spelled, where))
        found[key] = (name if name == spelled else key, first)
    return found


def label_numbers(names: Sequence[str]) -> dict[str, int]:
    """Key -> number of the labels of a task, in order; raises a DataError if two of them are one, or one is none."""
    numbers: dict[str, int] = {}
    for number, name in enumerate(names):
        key = label_key(name, names)
        if not key:
            raise DataError(f"A label of {', '.join(names)} is blank. Name each.")
        if key in numbers:
            raise DataError(
                f"The list of labels {', '.join(names)} names a label twice: {names[numbers[key]]!r} and {name!r} are one. Name each once."
            )
        numbers[key] = number
    return numbers
