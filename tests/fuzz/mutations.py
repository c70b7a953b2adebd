"""Ways to corrupt a valid file: values of JSON replaced, bytes flipped, cut, put in and repeated."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

# Replacement values of the wrong kind. Large numbers are just beyond the range of a byte, a word or a double.
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 255, 2**31 - 1, 2**31, 2**40, 2**63, 10**400, -(2**63), 0.5, -0.0, 1.5, 1e-320, 1e308, float("inf"),
    float("-inf"), float("nan"), "", " ", "a", "0", "-1", "nan", "\x00", "\ud800", "é\u0301", "../../x", "/dev/zero", "~nobody/x", "x" * 300,
    "{{ x }}", "%s%n", "(a+)+$", "[", [], [[]], [None], [1, "a"], [[0, 1], [2]], {}, {"": ""}, {"a": {"a": 1}}, {"0": -1}, [0] * 2000, "y" * 100_000,
)  # fmt: skip
_DEEP = 3000


def _places(value: Any, way: tuple = ()) -> list[tuple]:
    """The paths to all values inside a value; for long lists and objects only some."""
    found = [way]
    inner = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, child in inner[:20] + inner[-5:] if len(inner) > 25 else inner:
        found += _places(child, (*way, key))
    return found


def _deep(value: str, depth: int) -> str:
    return "[" * depth + value + "]" * depth


@st.composite
def spoilt_json(draw: st.DrawFn, seed: bytes) -> bytes:
    """A JSON document with one to three of its values replaced, left out, doubled or nested deeply."""
    value, deep = copy.deepcopy(json.loads(seed)), False
    for _ in range(draw(st.integers(1, 3))):
        way = draw(st.sampled_from(_places(value)))
        if not way:
            if draw(st.integers(0, 20)):
                continue
            value = draw(st.sampled_from(ODD))
            break
        holder = value
        for key in way[:-1]:
            holder = holder[key]
        how = draw(st.sampled_from(("replace", "replace", "replace", "drop", "wrap", "rename", "double", "deep")))
        if how == "drop":
            del holder[way[-1]]
        elif how == "rename" and isinstance(holder, dict):
            holder[str(draw(st.sampled_from(ODD)))[:1000]] = holder.pop(way[-1])
        elif how == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[way[-1]]))
        elif how == "deep":
            holder[way[-1]], deep = "\x00DEEP", True
        elif how == "wrap":
            holder[way[-1]] = [holder[way[-1]]]
        else:
            holder[way[-1]] = copy.deepcopy(draw(st.sampled_from(ODD)))
    text = json.dumps(value)
    return (text.replace(r'"\u0000DEEP"', _deep("1", _DEEP)) if deep else text).encode()


@st.composite
def spoilt_bytes(draw: st.DrawFn, seed: bytes) -> bytes:
    """A file with bytes flipped, cut off, put in, repeated or overwritten."""
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        how = draw(st.sampled_from(("flip", "flip", "cut", "insert", "repeat", "number", "lines")))
        if how == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del data[at : at + draw(st.sampled_from((1, 2, 8, 100, 10**9)))]
        elif how == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=12))
        elif how == "repeat":
            part = bytes(data[at : at + draw(st.integers(1, 40))])
            data[at:at] = part * draw(st.sampled_from((1, 10, 1000)))
        elif how == "number":  # where a format holds a length
            size = draw(st.sampled_from((1, 2, 4, 8)))
            number = draw(st.sampled_from((0, 2**7, 2**31, 2**32 - 1, 2**63, 2**64 - 1))) & (256**size - 1)
            data[at : at + size] = number.to_bytes(size, draw(st.sampled_from(("little", "big"))))
        elif how == "lines":
            lines = bytes(data).split(b"\n")
            lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(lines)) * 2)
            data = bytearray(b"\n".join(lines))
    return bytes(data)
