"""Replacing unpaired surrogates, which Python strings and JSON escapes can contain but UTF-8 cannot encode.

In all external text each unpaired surrogate becomes a question mark, so that character positions are unchanged; readers of files count
them and report where they were. Bytes that are not UTF-8 are different: readers reject them.
"""

from __future__ import annotations

from typing import Any, TypeVar

Value = TypeVar("Value")


def is_text(text: str) -> bool:
    """Whether a text can be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def replace_surrogates(value: Value) -> Value:
    """Replace unpaired surrogates in a text by question marks, also in texts inside lists, tuples and dicts."""
    replaced: Value = _replace(value)
    return replaced


def _replace(value: Any) -> Any:
    if isinstance(value, str):
        return value if is_text(value) else value.encode("utf-8", "replace").decode("utf-8")
    if type(value) in (list, tuple):
        return type(value)(map(_replace, value))
    if type(value) is dict:
        return {_replace(key): _replace(inner) for key, inner in value.items()}
    return value
