"""The msgpack files of flax.serialization.to_bytes: nested maps of arrays, as transformers 4 wrote Flax models.

An array is an extension (type 1; 3 for a NumPy scalar) around a second msgpack: [shape, name of the dtype, bytes]. Arrays of
a gigabyte or more are split into chunks. Nothing is unpacked here: a walk over the mapped file records where data are.
https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

import math
import pathlib
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lm_research.interop.tensor_types import StoredTensor, check_shape, damaged, map_file, transposed

ARRAY_TYPES = (1, 3)
CHUNKED = "__msgpack_chunked_array__"
MAX_DEPTH = 64
MAX_VALUES = 1_000_000
MAX_TEXT = 1000  # bytes of a name
_NUMPY_NAMES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64".split()
DTYPES = {name: np.dtype(name) for name in _NUMPY_NAMES} | {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
}

# First byte -> kind, and number of bytes of the length field.
_LENGTHS = {
    **{0xC4 + i: ("bytes", 2**i) for i in range(3)},
    **{0xC7 + i: ("extension", 2**i) for i in range(3)},
    **{0xD9 + i: ("bytes", 2**i) for i in range(3)},
    **{0xDC + i: ("list", 2 ** (i + 1)) for i in range(2)},
    **{0xDE + i: ("map", 2 ** (i + 1)) for i in range(2)},
}
_NUMBERS = {0xCA: ">f", 0xCB: ">d"} | {0xCC + i: ">" + code for i, code in enumerate("BHIQbhiq")}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


class _Span(NamedTuple):
    """Location of bytes or text in the file."""

    offset: int
    size: int


class _Walker:
    """Reads msgpack values from `data`, one after another, between `position` and `end`."""

    def __init__(self, path: pathlib.Path, data: np.ndarray, position: int, end: int, budget: list[int]) -> None:
        """`budget` is the number of values that all walkers of a file may still read, in a list so that they share it."""
        self.path, self.data, self.position, self.end, self.budget = path, data, position, end, budget

    def take(self, size: int) -> int:
        """Skip the next `size` bytes and return their offset."""
        if size > self.end - self.position:
            missing = size - (self.end - self.position)
            raise damaged(self.path, f"it is truncated: {missing} bytes are missing after byte {self.end}")
        self.position += size
        return self.position - size

    def number(self, size: int) -> int:
        """Read a big-endian integer of `size` bytes."""
        offset = self.take(size)
        return int.from_bytes(self.data[offset : offset + size].tobytes(), "big")

    def text(self, span: Any) -> str:
        """Decode a short text."""
        if not isinstance(span, _Span):
            raise damaged(self.path, f"byte {self.position} should end a text")
        if span.size > MAX_TEXT:
            raise damaged(self.path, f"the text that ends at byte {self.position} has {span.size} bytes")
        return self.data[span.offset : span.offset + span.size].tobytes().decode("utf-8")

    def value(self, keys: tuple[str, ...]) -> Any:
        """Read the next value: dict, list, StoredTensor, _Span, number, bool or None. `keys` are the map keys that lead to it."""
        self.budget[0] -= 1
        if len(keys) > MAX_DEPTH:
            raise damaged(self.path, f"its maps are nested deeper than {MAX_DEPTH}")
        if self.budget[0] < 0:
            raise damaged(self.path, f"it has more than {MAX_VALUES} values, which no model has")
        code = self.number(1)
        if code <= 0x7F or code >= 0xE0:
            return code if code <= 0x7F else code - 256
        if code <= 0x8F:
            return self.map(code & 0x0F, keys)
        if code <= 0x9F:
            return [self.value((*keys, str(i))) for i in range(code & 0x0F)]
        if code <= 0xBF:
            return _Span(self.take(code & 0x1F), code & 0x1F)
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _NUMBERS:
            size = struct.calcsize(_NUMBERS[code])
            offset = self.take(size)
            return struct.unpack(_NUMBERS[code], self.data[offset : offset + size].tobytes())[0]
        if 0xD4 <= code <= 0xD8:
            return self.extension(2 ** (code - 0xD4), keys)
        if code not in _LENGTHS:
            raise damaged(self.path, f"byte {self.position - 1} is not msgpack")
        kind, width = _LENGTHS[code]
        size = self.number(width)
        if kind == "bytes":
            return _Span(self.take(size), size)
        if kind == "list":
            return [self.value((*keys, str(i))) for i in range(size)]
        return self.map(size, keys) if kind == "map" else self.extension(size, keys)

    def map(self, size: int, keys: tuple[str, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(size):
            key = self.text(self.value((*keys, "?")))
            if key in found:
                raise damaged(self.path, "the name occurs twice", "/".join((*keys, key)))
            found[key] = self.value((*keys, key))
        return found

    def extension(self, size: int, keys: tuple[str, ...]) -> StoredTensor | None:
        kind, start = self.number(1), self.take(size)
        if kind not in ARRAY_TYPES:
            return None
        name, inner = "/".join(keys), _Walker(self.path, self.data, start, start + size, self.budget)
        parts = inner.value((*keys, "?"))
        if (
            not isinstance(parts, list)
            or len(parts) != 3
            or not isinstance(parts[2], _Span)
            or inner.position < inner.end
        ):
            raise damaged(self.path, "it is not [shape, dtype, bytes]", name)
        dtype = DTYPES.get(inner.text(parts[1]))
        if dtype is None:
            raise damaged(self.path, f"its dtype {inner.text(parts[1])!r} is not known", name)
        shape = check_shape(self.path, name, parts[0], dtype)
        if math.prod(shape) * dtype.itemsize != parts[2].size:
            raise damaged(self.path, f"shape {shape} of {dtype} does not take {parts[2].size} bytes", name)
        data, offset = self.data, parts[2].offset
        return StoredTensor(self.path, shape, dtype, lambda: np.ndarray(shape, dtype, data, offset))


def read_flax(path: pathlib.Path) -> dict[str, StoredTensor]:
    """Read the headers of the tensors of one file, by their keys joined with "/"; their data are not read.

    Matrices called `kernel` are transposed to PyTorch's layout: Dense's are [in, out] in Flax and [out, in] in PyTorch, and
    those of GPT-2's Conv1D the reverse.

    Raises:
      PretrainedError: the file is damaged.
    """
    data = map_file(path)
    walker = _Walker(path, data, 0, len(data), [MAX_VALUES])
    try:
        tree = walker.value(())
    except UnicodeDecodeError as error:
        raise damaged(path, f"a name is not UTF-8 ({error})") from error
    if not isinstance(tree, dict) or walker.position != len(data):
        raise damaged(path, "it is not one msgpack map")
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in _leaves(path, tree, ()):
        if name in tensors:
            raise damaged(path, "the name occurs twice", name)
        tensors[name] = transposed(tensor) if name.split("/")[-1] == "kernel" else tensor
    if not tensors:
        raise damaged(path, "it holds no arrays")
    return tensors


def torch_name(name: str) -> str:
    """Convert `encoder/query/kernel` to `encoder.query.weight`."""
    *path, last = name.split("/")
    return ".".join([*path, "weight" if last in ("kernel", "scale", "embedding") else last])


def _leaves(path: pathlib.Path, tree: dict[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the arrays in `tree`; other values are skipped."""
    for key, value in tree.items():
        name = "/".join((*keys, key))
        if isinstance(value, dict) and value.get(CHUNKED):
            yield name, _joined(path, name, value)
        elif isinstance(value, dict):
            yield from _leaves(path, value, (*keys, key))
        elif isinstance(value, StoredTensor):
            yield name, value


def _joined(path: pathlib.Path, name: str, value: dict[str, Any]) -> StoredTensor:
    """Join an array in chunks: {shape: {"0": ..., ...}, chunks: {"0": flat array, ...}}."""
    sizes, chunks = (_in_order(value.get(key)) for key in ("shape", "chunks"))
    if not chunks or not all(isinstance(chunk, StoredTensor) and len(chunk.shape) == 1 for chunk in chunks):
        raise damaged(path, "its chunks are not flat arrays", name)
    dtype = chunks[0].dtype
    shape = check_shape(path, name, sizes, dtype)
    found = sum(chunk.shape[0] for chunk in chunks)
    if found != math.prod(shape) or any(chunk.dtype != dtype for chunk in chunks):
        raise damaged(path, f"its chunks have {found} elements of {dtype}, which do not make shape {shape}", name)
    return StoredTensor(path, shape, dtype, lambda: np.concatenate([chunk.load() for chunk in chunks]).reshape(shape))


def _in_order(numbered: Any) -> list[Any] | None:
    """Convert {"0": a, "1": b} to [a, b]; None if the keys are not such."""
    if not isinstance(numbered, dict) or numbered.keys() != {str(i) for i in range(len(numbered))}:
        return None
    return [numbered[str(i)] for i in range(len(numbered))]
