"""The safetensors format: the length of a JSON header (8 bytes, little endian), that header, then all data.

The header has each tensor's dtype, shape and byte range; the ranges are contiguous and cover all data.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from lm_research.errors import PretrainedError
from lm_research.interop.tensor_types import (
    MAX_JSON_BYTES,
    StoredTensor,
    check_shape,
    damaged,
    is_count,
    map_file,
    parse_json,
)

# In the safetensors library's order of types, by which it sorts the tensors of a file.
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "C64": np.dtype("<c8"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
RANKS = {code: rank for rank, code in enumerate(DTYPES)}
METADATA = "__metadata__"


def read_safetensors(path: pathlib.Path) -> dict[str, StoredTensor]:
    """Read the header of a file: its tensors by name.

    Raises:
      PretrainedError: the header does not describe the file exactly.
    """
    data = map_file(path)
    if len(data) < 8:
        raise damaged(path, f"it has {len(data)} bytes, too few for a safetensors file")
    length, start = int.from_bytes(data[:8].tobytes(), "little"), 8
    if length > len(data) - start:
        raise damaged(path, f"its header should have {length} bytes, but only {len(data) - start} follow")
    if length > MAX_JSON_BYTES:
        raise damaged(path, f"its header has {length} bytes, and {MAX_JSON_BYTES} is the most that is allowed")
    header = parse_json(path, data[start : start + length].tobytes(), "its header")
    header.pop(METADATA, None)
    data_bytes = len(data) - start - length
    places: list[tuple[int, int, str]] = []
    tensors: dict[str, StoredTensor] = {}
    for name, entry in header.items():
        dtype, shape, (begin, end) = _checked(path, name, entry, data_bytes)
        places.append((begin, end, name))

        def load(
            dtype: np.dtype = dtype, shape: tuple[int, ...] = shape, offset: int = start + length + begin
        ) -> np.ndarray:
            return np.ndarray(shape, dtype, buffer=data, offset=offset)

        tensors[name] = StoredTensor(path, shape, dtype, load)
    _check_places(path, places, data_bytes)
    return tensors


def _checked(
    path: pathlib.Path, name: str, entry: Any, data_bytes: int
) -> tuple[np.dtype, tuple[int, ...], tuple[int, int]]:
    """Check one entry of the header and return (dtype, shape, byte range)."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise damaged(path, "its entry in the header is not {dtype, shape, data_offsets}", name)
    code, offsets = entry["dtype"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise damaged(path, f"its dtype {code!r} is not known (known: {', '.join(DTYPES)})", name)
    shape = check_shape(path, name, entry["shape"], DTYPES[code])
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)) or offsets[0] > offsets[1]:
        raise damaged(path, "its data_offsets are not a first and a last byte", name)
    if offsets[1] > data_bytes:
        raise damaged(path, f"its data end at byte {offsets[1]}, but the file has {data_bytes} bytes of data", name)
    needed = math.prod(shape) * DTYPES[code].itemsize
    if offsets[1] - offsets[0] != needed:
        raise damaged(path, f"shape {shape} of {code} takes {needed} bytes, not {offsets[1] - offsets[0]}", name)
    return DTYPES[code], shape, tuple(offsets)


def _check_places(path: pathlib.Path, places: Sequence[tuple[int, int, str]], data_bytes: int) -> None:
    """Check that each byte of the data belongs to exactly one tensor."""
    position, before = 0, None
    for begin, end, name in sorted(places):
        if begin < position:
            raise damaged(path, f"its data overlap those of tensor {before!r}", name)
        if begin > position:
            raise damaged(path, f"{begin - position} bytes before its data belong to no tensor", name)
        position, before = end, name
    if position != data_bytes:
        raise damaged(path, f"the last {data_bytes - position} bytes belong to no tensor")


def code_of(name: str, dtype: np.dtype) -> str:
    """Return safetensors' name of a dtype, for any byte order.

    Raises:
      PretrainedError: safetensors does not have this dtype.
    """
    code = CODES.get(dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype)
    if code is None:
        raise PretrainedError(f"Tensor {name!r} cannot be saved: safetensors has no dtype {dtype.name}.")
    return code


def file_order(entries: Sequence[tuple[str, tuple[int, ...], np.dtype]]) -> list[int]:
    """Sort entries by the order of their data in a file: widest types first, so that all are aligned; then by name."""
    return sorted(range(len(entries)), key=lambda i: (-RANKS[code_of(entries[i][0], entries[i][2])], entries[i][0]))


def header_of(entries: Sequence[tuple[str, tuple[int, ...], np.dtype]]) -> bytes:
    """Make the start of a file with tensors (name, shape, dtype) in this order: the length of the header and the header."""
    header: dict[str, Any] = {METADATA: {"format": "pt"}}  # transformers rejects files without this format
    position = 0
    for name, shape, dtype in entries:
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": code_of(name, dtype), "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
