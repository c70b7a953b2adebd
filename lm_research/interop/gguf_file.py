"""The GGUF format of ggml and llama.cpp: metadata, then tensors, some of them quantized in blocks.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Little-endian files of versions 2 and 3 are read; tensors of the types in
`DEQUANTIZE` are read as float32, values equal to those that llama.cpp computes with.
"""

from __future__ import annotations

import math
import pathlib
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lm_research.interop.tensor_types import MAX_RANK, StoredTensor, check_shape, damaged, map_file, shown

MAGIC, VERSIONS = b"GGUF", (2, 3)
MAX_ENTRIES, MAX_STRING = 2**24, 2**26  # of metadata, tensors and arrays; bytes
_STRING, _ARRAY = 8, 9
# Type of a value of metadata -> its struct code.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Quantization(NamedTuple):
    """A type of tensors: name, elements and bytes of a block, and the function from blocks [N, bytes] to values [N, elements]."""

    name: str
    elements: int
    bytes: int
    values: Callable[[np.ndarray], np.ndarray]


class GgufFile(NamedTuple):
    """Metadata by key, and tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


def _half(blocks: np.ndarray, start: int) -> np.ndarray:
    """The float16 number at a byte of each block, [N, 1] in float32."""
    return blocks[:, start : start + 2].copy().view("<f2").astype(np.float32)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    """32 signed bytes times one scale."""
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    """32 numbers of 4 bits minus 8, times one scale; the low halves of the bytes are the first 16."""
    packed = blocks[:, 2:]
    return _half(blocks, 0) * (np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32) - 8)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    """256 numbers of 4 bits in 8 groups, each with a scale and a minimum of 6 bits, times two scales of the block."""
    packed = blocks[:, 4:16]
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scale = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=1).astype(np.float32)
    minimum = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], axis=1).astype(np.float32)
    halves = blocks[:, 16:].reshape(-1, 4, 1, 32)
    numbers = np.concatenate([halves & 15, halves >> 4], axis=2).reshape(-1, 8, 32).astype(np.float32)
    values = (_half(blocks, 0) * scale)[..., None] * numbers - (_half(blocks, 2) * minimum)[..., None]
    return values.reshape(-1, 256)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    """256 numbers of 6 bits minus 32, low 4 and high 2 bits apart, in 16 groups with a scale of 8 bits, times one scale of the block."""
    low, high = blocks[:, :128].reshape(-1, 2, 1, 64), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    high = np.concatenate([high >> shift & 3 for shift in (0, 2, 4, 6)], axis=2)
    numbers = (low | high << 4).astype(np.float32).reshape(-1, 16, 16) - 32
    scale = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return (scale[..., None] * numbers).reshape(-1, 256)


# Number of a type in the file -> how it is read.
DEQUANTIZE = {
    2: Quantization("Q4_0", 32, 18, _q4_0),
    8: Quantization("Q8_0", 32, 34, _q8_0),
    12: Quantization("Q4_K", 256, 144, _q4_k),
    14: Quantization("Q6_K", 256, 210, _q6_k),
}
PLAIN = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 30: np.dtype(ml_dtypes.bfloat16)}
# Names of further types, for messages.
_OTHERS = {
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    13: "Q5_K",
    15: "Q8_K",
    20: "IQ4_NL",
    23: "IQ4_XS",
}


class _Reader:
    """A position in a file's bytes."""

    def __init__(self, path: pathlib.Path, data: np.ndarray) -> None:
        self.path, self.data, self.place = path, data, 0

    def take(self, size: int) -> bytes:
        if self.place + size > len(self.data):
            raise damaged(self.path, f"it ends at byte {len(self.data):,}, within its header")
        self.place += size
        return self.data[self.place - size : self.place].tobytes()

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def count(self, limit: int, what: str) -> int:
        found = self.number("Q")
        if found > limit:
            raise damaged(self.path, f"it claims {found:,} {what}; at most {limit:,} are possible")
        return found

    def text(self) -> str:
        content = self.take(self.count(MAX_STRING, "bytes in a string"))
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise damaged(self.path, f"a string is not UTF-8 ({error.reason})") from error

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
            raise damaged(self.path, f"type {kind} of a value is unknown")
        return self.number(_SCALARS[kind])


def read_gguf(path: pathlib.Path) -> GgufFile:
    """Read a file's metadata, and the descriptions of its tensors.

    Raises:
      PretrainedError: the file is damaged, of an unknown version, or has a tensor of a type that is not supported.
    """
    reader = _Reader(path, map_file(path))
    if reader.take(4) != MAGIC:
        raise damaged(path, "it does not begin with GGUF")
    if (version := reader.number("I")) not in VERSIONS:
        raise damaged(path, f"its version is {version}, but versions 2 and 3 (little-endian) are supported")
    num_tensors, num_keys = reader.count(MAX_ENTRIES, "tensors"), reader.count(MAX_ENTRIES, "keys")
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = reader.text()
        metadata[key] = reader.value(reader.number("I"))
    described = [_describe(reader) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 2**20:
        raise damaged(path, f"general.alignment is {shown(alignment)}")
    start = -(-reader.place // alignment) * alignment
    tensors: dict[str, StoredTensor] = {}
    for name, shape, kind, offset in described:
        if name in tensors:
            raise damaged(path, "two tensors have this name", name)
        tensors[name] = _tensor(reader, name, shape, kind, start + offset)
    return GgufFile(metadata, tensors)


def _describe(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """The name, shape, type and offset of the next tensor; the file lists the fastest axis first."""
    name, rank = reader.text(), reader.number("I")
    if rank > MAX_RANK:
        raise damaged(reader.path, f"it has {rank} axes", name)
    shape = [reader.number("Q") for _ in range(rank)]
    return (
        name,
        check_shape(reader.path, name, shape[::-1], np.dtype(np.float32)),
        reader.number("I"),
        reader.number("Q"),
    )


def _tensor(reader: _Reader, name: str, shape: tuple[int, ...], kind: int, start: int) -> StoredTensor:
    path, size = reader.path, math.prod(shape)
    if kind not in PLAIN and kind not in DEQUANTIZE:
        known = [str(one) for one in ("F32", "F16", "BF16", *(one.name for one in DEQUANTIZE.values()))]
        raise damaged(
            path,
            f"its type is {_OTHERS.get(kind, kind)}, but only {', '.join(known)} are read",
            name,
            "Download a file of another quantization, such as Q8_0 or Q4_K_M, or the original model.",
        )
    block = DEQUANTIZE.get(kind)
    if block is not None and (not shape or shape[-1] % block.elements):
        raise damaged(path, f"{block.name} has blocks of {block.elements}, which do not divide its shape {shape}", name)
    length = size // block.elements * block.bytes if block else size * PLAIN[kind].itemsize
    if start + length > len(reader.data):
        raise damaged(path, f"its bytes end at {start + length:,}, but the file has {len(reader.data):,}", name)
    content = reader.data[start : start + length]

    def load() -> np.ndarray:
        if block is None:
            return content.view(PLAIN[kind]).reshape(shape)
        return block.values(content.reshape(-1, block.bytes)).reshape(shape)

    return StoredTensor(path, shape, np.dtype(np.float32) if block else PLAIN[kind], load)
