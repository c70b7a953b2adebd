"""Normalization of labels, so that one label has one key whichever file format it is read from.

JSON's true and 1, a table's "true" and "1", and the 1.0 that a column with gaps turns 1 into have the same keys; null, NaN and blanks are
not labels.
"""

from __future__ import annotations

import datetime
import decimal
import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from lm_research.errors import DataError

# What is wrong with the label of a held-out record.
NOT_TRAINED = "which no training record has (if it is right, list all labels in --config.task.labels, and the record counts as wrong)"
_WHOLE = re.compile(r"(-?\d+)\.0+", re.ASCII)
_NONE = ("", "nan", "null")


def label_key(value: Any, configured: Collection[str] = ()) -> str:
    """Normalize the value of a field to the key that all spellings of a label have in common; "" if it is not a label.

    Args:
      value: of a field.
      configured: labels that the user listed, which may include words that otherwise mean a missing label ("null").
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
    if text.lower() in _NONE and text not in configured:
        return ""
    if text.lower() in ("true", "false"):
        return text.capitalize()
    text = found[1] if (found := _WHOLE.fullmatch(text)) else text
    return "0" if text == "-0" else text


def label_names(given: Iterable[tuple[Any, str, str]]) -> dict[str, tuple[str, str]]:
    """Collect labels from (value, key, where): key -> (name, where it occurs first).

    The name is the label's text if all its occurrences are texts spelled alike, otherwise the key.
    """
    found: dict[str, tuple[str, str]] = {}
    for value, key, where in given:
        spelled = value.strip() if isinstance(value, str) else key
        name, first = found.get(key, (spelled, where))
        found[key] = (name if name == spelled else key, first)
    return found


def label_numbers(names: Sequence[str]) -> dict[str, int]:
    """Number the labels of a task in order: key -> number; raise a DataError if two have the same key or one is blank."""
    numbers: dict[str, int] = {}
    for number, name in enumerate(names):
        key = label_key(name, names)
        if not key:
            raise DataError(f"One of the labels {', '.join(names)} is blank. Name each label.")
        if key in numbers:
            raise DataError(
                f"The list of labels {', '.join(names)} has a label twice: {names[numbers[key]]!r} and {name!r} are the same. List each once."
            )
        numbers[key] = number
    return numbers
