"""Write GGUF files, version 3, as the specification has it: all tensors in float32."""

from __future__ import annotations

import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np


def write_gguf(path: pathlib.Path, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(_text(key) + _value(value) for key, value in metadata.items())
    data = b""
    for name, value in tensors.items():
        shape = value.shape[::-1]
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += np.ascontiguousarray(value, np.float32).tobytes()
        data += bytes(-len(data) % 32)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(head + bytes(-len(head) % 32) + data)


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _value(value: Any) -> bytes:
    """The number of the type, then the value: of a list those of its first entry, for all."""
    if isinstance(value, list):
        kind = _value(value[0])[:4]
        return struct.pack("<I", 9) + kind + struct.pack("<Q", len(value)) + b"".join(_value(one)[4:] for one in value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<Ii", 5, value)
