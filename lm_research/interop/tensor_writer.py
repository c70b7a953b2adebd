"""Writing of weights as transformers does: model.safetensors, or shards of it and an index, one tensor at a time."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

import numpy as np

from lm_research.common.disk import describe_os_error, format_size
from lm_research.errors import PretrainedError
from lm_research.interop.safetensors_file import METADATA, file_order, header_of

WEIGHTS = "model.safetensors"
INDEX = WEIGHTS + ".index.json"
# Files of earlier saves, including unfinished ones.
OURS = re.compile(r"\.?model(-\d{5,}-of-\d{5,})?\.safetensors(\.index\.json)?(\.tmp)?")
PIECE = 2**26  # elements per call of write

Tensor = tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]


def write_tensors(
    directory: pathlib.Path, tensors: Iterable[Tensor], max_shard_bytes: int = 5 * 10**9
) -> list[pathlib.Path]:
    """Write model.safetensors, or model-00001-of-0000N.safetensors and so on with model.safetensors.index.json.

    The same tensors give the same bytes. Files are renamed to their final names when all of them are complete, the index last;
    then weight files of an earlier save in `directory` are deleted. A save that is killed leaves the earlier weights, or, while
    shards replace shards, no index.

    Args:
      directory: created if it does not exist.
      tensors: (name, shape, dtype, function that returns the array), in the order in which shards are filled. Each function
        is called once, and one array is held in memory at a time.
      max_shard_bytes: most bytes of data in a file; a larger tensor gets its own file.

    Returns:
      The weight files, then the index if there is one.

    Raises:
      PretrainedError: safetensors lacks a dtype, or the directory cannot be written.
    """
    directory, shards = pathlib.Path(directory), _shards(list(tensors), max_shard_bytes)
    names = [WEIGHTS]
    if len(shards) > 1:
        names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    written = [*names, *([INDEX] if len(shards) > 1 else [])]
    temporary = {name: directory / f".{name}.tmp" for name in written}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, shard in zip(names, shards, strict=True):
            with _synced(temporary[name]) as file:
                _write_file(file, shard)
        if len(shards) > 1:
            with _synced(temporary[INDEX]) as file:
                file.write(_index(names, shards))
            # Otherwise a kill between two renames would leave an old index with new shards, which is not detectable.
            (directory / INDEX).unlink(missing_ok=True)
        for name, path in temporary.items():
            os.replace(path, directory / name)
        for path in directory.iterdir():
            if OURS.fullmatch(path.name) and path.name not in written:
                path.unlink()
    except OSError as error:
        needed = format_size(sum(_num_bytes(tensor) for shard in shards for tensor in shard))
        raise PretrainedError(
            f"Weights of {needed} cannot be written to {directory}: {describe_os_error(error, directory)}. Its previous content is unchanged. Free some "
            "space, or choose another directory."
        ) from error
    finally:
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    return [directory / name for name in written]


def _shards(tensors: Sequence[Tensor], max_shard_bytes: int) -> list[list[Tensor]]:
    """Distribute tensors over files in order, as huggingface_hub's split_state_dict_into_shards_factory does."""
    assert tensors, "no tensors"
    names = [tensor[0] for tensor in tensors]
    assert len(set(names)) == len(names) and METADATA not in names, "names are unique"
    full: list[list[Tensor]] = []
    current: list[Tensor] = []
    size = 0
    for tensor in tensors:
        num_bytes = _num_bytes(tensor)
        if num_bytes > max_shard_bytes:
            full.append([tensor])
            continue
        if size + num_bytes > max_shard_bytes:
            full.append(current)
            current, size = [], 0
        current.append(tensor)
        size += num_bytes
    shards = full + ([current] if current else [])
    return [[shard[i] for i in file_order([tensor[:3] for tensor in shard])] for shard in shards]


def _num_bytes(tensor: Tensor) -> int:
    return math.prod(tensor[1]) * tensor[2].itemsize


def _write_file(file: BinaryIO, tensors: Sequence[Tensor]) -> None:
    file.write(header_of([tensor[:3] for tensor in tensors]))
    for name, shape, dtype, make in tensors:
        array = np.asarray(make())
        assert (array.shape, array.dtype) == (tuple(shape), dtype), (name, array.shape, array.dtype, shape, dtype)
        flat = np.ascontiguousarray(array).reshape(-1)
        del array
        for i in range(0, flat.size, PIECE):
            piece = flat[i : i + PIECE]
            if piece.dtype.byteorder == ">":
                piece = piece.byteswap()
            file.write(piece.view(np.uint8).data)  # bfloat16 has no buffer of its own


def _index(names: Sequence[str], shards: Sequence[Sequence[Tensor]]) -> bytes:
    index = {
        "metadata": {"total_size": sum(_num_bytes(tensor) for shard in shards for tensor in shard)},
        "weight_map": {tensor[0]: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
    }
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


@contextlib.contextmanager
def _synced(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Open a file for writing and sync it to the disk at the end, so that a power cut cannot leave an empty file."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
