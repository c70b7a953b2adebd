"""Tensors of GGUF files, the format of ggml and llama.cpp, some of them quantized in blocks.

Types: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. Tensors of the types in `DEQUANTIZE` are read as float32, values
equal to those that llama.cpp computes with. common/gguf_header.py reads the header.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lm_research.common.gguf_header import Description, read_header
from lm_research.interop.tensor_types import StoredTensor, check_shape, damaged, map_file


class Quantization(NamedTuple):
    """A type of tensors: name, elements and bytes of a block, and the function from blocks [N, bytes] to values [N, elements]."""

    name: str
    elements: int
    bytes: int
    values: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class GgufTensor(StoredTensor):
    """A tensor of a GGUF file.

    Attributes:
      part: returns one index of the first axis (an expert of a layer), without reading the others.
    """

    part: Callable[[int], StoredTensor]


class GgufFile(NamedTuple):
    """Metadata by key, and tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def _half(blocks: np.ndarray, start: int) -> np.ndarray:
    """The float16 number at a byte of each block, [N, 1] in float32."""
    return blocks[:, start : start + 2].copy().view("<f2").astype(np.float32)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    """32 numbers of 4 bits minus 8, times one scale; the low halves of the bytes are the first 16."""
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    """32 numbers of 4 bits times one scale, plus a minimum."""
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    """32 numbers of 5 bits minus 16, times one scale; the fifth bits are apart."""
    return _half(blocks, 0) * (_five_bits(blocks, 2).astype(np.float32) - 16)


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    """32 numbers of 5 bits times one scale, plus a minimum."""
    return _half(blocks, 0) * _five_bits(blocks, 4).astype(np.float32) + _half(blocks, 2)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    """32 signed bytes times one scale."""
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q2_k(blocks: np.ndarray) -> np.ndarray:
    """256 numbers of 2 bits in 16 groups, each with a scale and a minimum of 4 bits, times two scales of the block."""
    scale, minimum = (part.astype(np.float32) for part in (blocks[:, :16] & 15, blocks[:, :16] >> 4))
    numbers = _fields(blocks[:, 16:80], 2).reshape(-1, 16, 16).astype(np.float32)
    values = (_half(blocks, 80) * scale)[..., None] * numbers - (_half(blocks, 82) * minimum)[..., None]
    return values.reshape(-1, 256)


def _q3_k(blocks: np.ndarray) -> np.ndarray:
    """256 numbers of 3 bits minus 4 in 16 groups with a scale of 6 bits minus 32, times one scale; the high bits are apart."""
    low, high = (
        _nibbles(blocks[:, 96:104]),
        np.concatenate([blocks[:, 104:108] >> shift & 3 for shift in (0, 2, 4, 6)], 1),
    )
    scale = (low | high << 4).astype(np.float32) - 32
    top = np.stack([blocks[:, :32] >> shift & 1 for shift in range(8)], axis=1).reshape(-1, 16, 16)
    numbers = (_fields(blocks[:, 32:96], 2).reshape(-1, 16, 16) | top << 2).astype(np.float32) - 4
    return ((_half(blocks, 108) * scale)[..., None] * numbers).reshape(-1, 256)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    """256 numbers of 4 bits in 8 groups, each with a scale and a minimum of 6 bits, times two scales of the block."""
    return _in_eight_groups(blocks, _fields(blocks[:, 16:], 4))


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    """256 numbers of 5 bits, otherwise as `_q4_k`; the fifth bits are apart."""
    top = np.concatenate([blocks[:, 16:48] >> shift & 1 for shift in range(8)], axis=1)
    return _in_eight_groups(blocks, _fields(blocks[:, 48:], 4) | top << 4)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    """256 numbers of 6 bits minus 32, low 4 and high 2 bits apart, in 16 groups with a scale of 8 bits, times one scale of the block."""
    low = np.concatenate([_nibbles(blocks[:, :64]), _nibbles(blocks[:, 64:128])], axis=1)
    numbers = (low | _fields(blocks[:, 128:192], 2) << 4).astype(np.float32).reshape(-1, 16, 16) - 32
    scale = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return (scale[..., None] * numbers).reshape(-1, 256)


def _iq4_nl(blocks: np.ndarray) -> np.ndarray:
    """32 numbers of 4 bits, indices of uneven levels, times one scale."""
    return _half(blocks, 0) * _LEVELS[_nibbles(blocks[:, 2:])]


def _iq4_xs(blocks: np.ndarray) -> np.ndarray:
    """256 numbers of 4 bits, indices of uneven levels, in 8 groups with a scale of 6 bits minus 32, times one scale of the block."""
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    high = np.stack([blocks[:, 2 + byte] >> shift & 3 for byte in (0, 1) for shift in (0, 2, 4, 6)], axis=1)
    scale = _half(blocks, 0) * ((low | high << 4).astype(np.float32) - 32)
    numbers = np.concatenate([_nibbles(blocks[:, start : start + 16]) for start in range(8, 136, 16)], axis=1)
    return (scale[..., None] * _LEVELS[numbers.reshape(-1, 8, 32)]).reshape(-1, 256)


# The levels of IQ4 types, ggml's kvalues_iq4nl.
_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """Low halves of all bytes, then their high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fields(packed: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of 2 or 4 bits: of each 32 bytes, the lowest bits come first."""
    parts = packed.reshape(len(packed), -1, 1, 32)
    return np.concatenate([parts >> shift & (2**bits - 1) for shift in range(0, 8, bits)], axis=2).reshape(
        len(packed), -1
    )


def _five_bits(blocks: np.ndarray, start: int) -> np.ndarray:
    """32 numbers whose fifth bits are the 4 bytes at `start`, before the others."""
    top = np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little")
    return _nibbles(blocks[:, start + 4 :]) | top << 4


def _in_eight_groups(blocks: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Scale numbers [N, 256] by the packed scales and minima of `_q4_k`."""
    packed = blocks[:, 4:16]
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scale = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=1).astype(np.float32)
    minimum = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], axis=1).astype(np.float32)
    values = (_half(blocks, 0) * scale)[..., None] * numbers.reshape(-1, 8, 32).astype(np.float32)
    return (values - (_half(blocks, 2) * minimum)[..., None]).reshape(-1, 256)


# Number of a type in the file -> how it is read.
DEQUANTIZE = {
    2: Quantization("Q4_0", 32, 18, _q4_0),
    3: Quantization("Q4_1", 32, 20, _q4_1),
    6: Quantization("Q5_0", 32, 22, _q5_0),
    7: Quantization("Q5_1", 32, 24, _q5_1),
    8: Quantization("Q8_0", 32, 34, _q8_0),
    10: Quantization("Q2_K", 256, 84, _q2_k),
    11: Quantization("Q3_K", 256, 110, _q3_k),
    12: Quantization("Q4_K", 256, 144, _q4_k),
    13: Quantization("Q5_K", 256, 176, _q5_k),
    14: Quantization("Q6_K", 256, 210, _q6_k),
    20: Quantization("IQ4_NL", 32, 18, _iq4_nl),
    23: Quantization("IQ4_XS", 256, 136, _iq4_xs),
}
PLAIN = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 30: np.dtype(ml_dtypes.bfloat16)}
# Names of further types, for messages.
_OTHERS = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}


def read_gguf(path: pathlib.Path) -> GgufFile:
    """Read a file's metadata, and the descriptions of its tensors.

    Raises:
      PretrainedError: the file is damaged, of an unknown version, or has a tensor of a type that is not supported.
    """
    data = map_file(path)
    try:
        header = read_header(data.data)
    except ValueError as error:
        raise damaged(path, str(error)) from error
    tensors = {name: _tensor(path, data, name, described) for name, described in header.tensors.items()}
    return GgufFile(header.metadata, tensors)


def _tensor(path: pathlib.Path, data: np.ndarray, name: str, described: Description) -> GgufTensor:
    shape, kind, start = described
    shape = check_shape(path, name, shape, np.dtype(np.float32))
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
    size = math.prod(shape)
    length = size // block.elements * block.bytes if block else size * PLAIN[kind].itemsize
    if start + length > len(data):
        raise damaged(path, f"its bytes end at {start + length:,}, but the file has {len(data):,}", name)
    return _described(path, data[start : start + length], shape, kind)


def _described(path: pathlib.Path, content: np.ndarray, shape: tuple[int, ...], kind: int) -> GgufTensor:
    block = DEQUANTIZE.get(kind)

    def load() -> np.ndarray:
        if block is None:
            return content.view(PLAIN[kind]).reshape(shape)
        return block.values(content.reshape(-1, block.bytes)).reshape(shape)

    def part(index: int) -> StoredTensor:
        each = len(content) // shape[0]
        return _described(path, content[index * each : (index + 1) * each], shape[1:], kind)

    return GgufTensor(path, shape, np.dtype(np.float32) if block else PLAIN[kind], load, part)
