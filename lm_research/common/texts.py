"""What is text: what UTF-8 can hold. Halves of surrogate pairs are not, though Python's strings and JSON's escapes can name them.

One rule for all texts that come from outside: each half becomes a question mark, so that places in a text stay what they were; readers
of files count and tell where. Bytes that are not UTF-8 are no such case: whoever reads them refuses them.
"""

from __future__ import annotations

from typing import Any, TypeVar

Value = TypeVar("Value")


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def replace_surrogates(value: Value) -> Value:
    """A text with question marks for halves of surrogate pairs; of lists, tuples and dicts, all texts in them. Others stay as they are."""
    found: Value = _whole(value)
    return found


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return value if is_text(value) else value.encode("utf-8", "replace").decode("utf-8")
    if type(value) in (list, tuple):
        return type(value)(map(_whole, value))
    if type(value) is dict:
        return {_whole(key): _whole(inner) for key, inner in value.items()}
    return value
