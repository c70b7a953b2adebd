"""Shared parts of the readers of weight files: tensors on disk, mapped files, and errors about damaged files."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import reprlib
from collections.abc import Callable
from typing import Any

import numpy as np

from lm_research.common.documents import json_value
from lm_research.errors import PretrainedError

MAX_RANK = 32
MAX_BYTES = 2**63 - 1
# Of headers and indexes: those of the largest models have 10 MB; the safetensors library's limit is 100 MB.
MAX_JSON_BYTES = 2**25
MAX_QUOTED = 300  # characters of a message that come from a file
LFS_POINTER = b"version https://git-lfs"
AGAIN = "Download or convert it again."


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file, checked but not yet loaded.

    Attributes:
      path: the file.
      shape: shape of the array that `load` returns.
      dtype: dtype of that array, in this machine's byte order.
      load: returns the array, a read-only view of the mapped file if the format allows it.
    """

    path: pathlib.Path
    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]


def transposed(tensor: StoredTensor) -> StoredTensor:
    """Return the transposed matrix; tensors of other ranks are returned unchanged."""
    if len(tensor.shape) != 2:
        return tensor
    return StoredTensor(tensor.path, tensor.shape[::-1], tensor.dtype, lambda: tensor.load().T)


def damaged(path: pathlib.Path, what: str, tensor: str | None = None, fix: str = AGAIN) -> PretrainedError:
    """Make the error for a file that violates its format."""
    where = "" if tensor is None else f"tensor {printable(repr(tensor))}: "
    return PretrainedError(f"The weight file {path} cannot be used: {where}{printable(what)}. {fix}")


def printable(text: str) -> str:
    """Put `text` on one line of limited length, without characters by which a malicious file could control a terminal."""
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text[:1000].split()))
    return text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + " ..."


def map_file(path: pathlib.Path) -> np.ndarray:
    """Map a file into memory, read-only, as uint8 [size].

    Raises:
      PretrainedError: the file cannot be read, is empty, or is a pointer of Git LFS.
    """
    try:
        if path.stat().st_size == 0:
            raise damaged(path, "it is empty")
        data = np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        fix = "Change its permissions." if isinstance(error, PermissionError) else AGAIN
        raise damaged(path, f"{error.strerror or error}", fix=fix) from error
    if data[: len(LFS_POINTER)].tobytes() == LFS_POINTER:
        raise PretrainedError(
            f"{path} is a Git LFS pointer, not the weights themselves. Run `git lfs pull` in {path.parent}."
        )
    return data


def shown(value: Any) -> str:
    """Format a value of a file for a message. Nested values are not shown: a few bytes of a pickle can nest without end."""
    if isinstance(value, list | tuple):
        items = [shown(item) if isinstance(item, int | str) else type(item).__name__ for item in value[:6]]
        return f"[{', '.join(items)}{', ...' if len(value) > 6 else ''}]"
    return reprlib.repr(value) if isinstance(value, str | int | float | bytes | None) else f"a {type(value).__name__}"


def is_count(value: Any) -> bool:
    """Whether `value` is an integer from 0 to 2**63 - 1; True and False are not."""
    return type(value) is int and 0 <= value <= MAX_BYTES


def check_shape(path: pathlib.Path, tensor: str, shape: Any, dtype: np.dtype) -> tuple[int, ...]:
    """Return `shape` as a tuple if NumPy can represent such an array.

    Raises:
      PretrainedError: `shape` is not a sequence of sizes, or has too many or too large ones.
    """
    if not isinstance(shape, list | tuple) or len(shape) > MAX_RANK or not all(is_count(size) for size in shape):
        raise damaged(path, f"{shown(shape)} is not a shape", tensor)
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize > MAX_BYTES:
        raise damaged(path, f"an array of shape {tuple(shape)} is too large for any machine", tensor)
    return tuple(shape)


def parse_json(path: pathlib.Path, text: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object without duplicate keys.

    Raises:
      PretrainedError: `text`, called `what` in the message, is not such an object.
    """
    try:
        value = json_value(text, unique=True)
    except ValueError as error:
        raise damaged(path, f"{what} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise damaged(path, f"{what} is not a JSON object")
    return value
