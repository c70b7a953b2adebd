"""The header of a GGUF file: metadata, and the descriptions of its tensors.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Little-endian files of versions 2 and 3 are read.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

MAGIC, VERSIONS = b"GGUF", (2, 3)
MAX_ENTRIES, MAX_STRING = 2**24, 2**26  # of metadata, tensors and arrays; bytes
MAX_RANK = 32
_STRING, _ARRAY = 8, 9
# Type of a value of metadata -> its struct code.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Description(NamedTuple):
    """A tensor: its shape with the slowest axis first, the number of its type, and its first byte in the file."""

    shape: tuple[int, ...]
    kind: int
    start: int


class Header(NamedTuple):
    """Metadata by key, and tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, Description]


class _Reader:
    """A position in a file's bytes."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.place = data, 0

    def take(self, size: int) -> memoryview:
        if self.place + size > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data):,}, within its header")
        self.place += size
        return self.data[self.place - size : self.place]

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def count(self, limit: int, what: str) -> int:
        found: int = self.number("Q")
        if found > limit:
            raise ValueError(f"it claims {found:,} {what}; at most {limit:,} are possible")
        return found

    def text(self) -> str:
        content = self.take(self.count(MAX_STRING, "bytes in a string"))
        try:
            return str(content, "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"a string is not UTF-8 ({error.reason})") from error

    def value(self, kind: int, in_array: bool = False) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY and not in_array:
            inner, size = self.number("I"), self.count(MAX_ENTRIES, "entries in an array")
            if inner in _SCALARS:
                width = struct.calcsize(f"<{_SCALARS[inner]}")
                return list(struct.unpack(f"<{size}{_SCALARS[inner]}", self.take(size * width)))
            return [self.value(inner, in_array=True) for _ in range(size)]
        if kind not in _SCALARS:
            raise ValueError(f"type {kind} of a value is unknown")
        return self.number(_SCALARS[kind])

    def description(self) -> tuple[str, list[int], int, int]:
        """Name, shape with the fastest axis first, type and offset of the next tensor."""
        name, rank = self.text(), self.number("I")
        if rank > MAX_RANK:
            raise ValueError(f"tensor {name[:100]!r} has {rank} axes")
        return name, [self.number("Q") for _ in range(rank)], self.number("I"), self.number("Q")


def read_header(data: memoryview) -> Header:
    """Read the header of a file with these bytes.

    Raises:
      ValueError: the header is damaged, or of an unknown version; the message is the reason.
    """
    reader = _Reader(data)
    if reader.take(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    if (version := reader.number("I")) not in VERSIONS:
        raise ValueError(f"its version is {version}, but versions 2 and 3 (little-endian) are supported")
    num_tensors, num_keys = reader.count(MAX_ENTRIES, "tensors"), reader.count(MAX_ENTRIES, "keys")
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = reader.text()
        metadata[key] = reader.value(reader.number("I"))
    described = [reader.description() for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 2**20:
        raise ValueError(f"general.alignment is {str(alignment)[:100]!r}")
    start = -(-reader.place // alignment) * alignment
    tensors = {name: Description(tuple(shape[::-1]), kind, start + offset) for name, shape, kind, offset in described}
    if len(tensors) < num_tensors:
        names = [name for name, *_ in described]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two tensors are named {twice[:100]!r}")
    return Header(metadata, tensors)
