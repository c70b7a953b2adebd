"""PyTorch's weight files (torch.save of a state dict), read without torch.

There are two formats:

    zip      since PyTorch 1.6: entries NAME/data.pkl, NAME/byteorder and, uncompressed, NAME/data/KEY for each storage
    legacy   before: five pickles (magic number, version, machine, state dict, keys of the storages), then for each key
             the number of elements (int64) and the elements

https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import io
import math
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from lm_research.errors import PretrainedError
from lm_research.interop.restricted_pickle import ForbiddenGlobal, StateDict, Storage, TorchTensor, load
from lm_research.interop.tensor_types import StoredTensor, check_shape, damaged, is_count, map_file, printable, shown

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
WRAPPERS = ("state_dict", "model")  # keys under which training scripts keep the state dict
MAX_PICKLE = 2**26  # bytes
MAX_DIRECTORY = 2**24  # bytes, of 200,000 entries or so
LOCAL_HEADER = 30  # bytes of a zip entry's header before its name


class _Pieces(io.BufferedReader):
    """A file that rejects reads that are larger than the directory of a zip file can be."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return super().read(size)


class _Place(NamedTuple):
    """Location of a storage in the file, in bytes."""

    offset: int
    size: int


def read_torch(path: pathlib.Path) -> dict[str, StoredTensor]:
    """Open the tensors of one file, by name; their data are not read. Entries that are not tensors are skipped.

    Raises:
      PretrainedError: the file is damaged, or its pickle names something that weights do not need.
    """
    data = map_file(path)
    try:
        if data[:4].tobytes() == b"PK\x03\x04":
            state, places, little = _open_zip(path, data)
        elif data[257:262].tobytes() == b"ustar":
            raise damaged(path, "it has the tar format of PyTorch 0.1, which is not supported")
        else:
            state, places, little = _open_legacy(path, data)
    except PretrainedError:
        raise
    except ForbiddenGlobal as error:
        raise PretrainedError(
            f"The weight file {path} is rejected: its pickle refers to {printable(str(error))}, which weights do not need and which "
            "could run any code. Get the weights as safetensors from a source that you trust."
        ) from error
    except Exception as error:  # invalid pickles and zip files fail in many ways
        raise damaged(path, f"it is not a PyTorch file ({type(error).__name__}: {error})") from error
    tensors = {}
    for name, tensor in _entries(path, state):
        tensors[name] = _stored(path, data, name, tensor, places, little)
    if not tensors:
        raise damaged(path, "it holds no tensors")
    return tensors


def _entries(path: pathlib.Path, state: Any) -> Iterator[tuple[str, TorchTensor]]:
    if isinstance(state, StateDict):
        state = next((state[key] for key in WRAPPERS if isinstance(state.get(key), dict)), state)
    if not isinstance(state, StateDict):
        raise damaged(path, "it holds no state dict")
    if state.unnamed:
        raise damaged(path, "a tensor has a name that is not a string")
    for name, value in state.items():
        if isinstance(value, TorchTensor):
            yield name, value


def _open_zip(path: pathlib.Path, data: np.ndarray) -> tuple[Any, dict[str, _Place], bool]:
    """Return (state dict, places of the storages, whether they are little-endian)."""
    with zipfile.ZipFile(_Pieces(io.FileIO(path))) as archive:
        entries: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            if info.filename in entries:
                raise damaged(path, f"its entry {info.filename!r} occurs twice")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise damaged(path, f"its entry {info.filename!r} is compressed, which PyTorch's are not")
            entries[info.filename] = info
        pickles = [name for name in entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise damaged(path, "it is a zip file without data.pkl of torch.save")
        prefix = pickles[0].removesuffix("data.pkl")
        for name, limit in ((pickles[0], MAX_PICKLE), (prefix + "byteorder", 64)):
            if name in entries and entries[name].file_size > limit:
                raise damaged(path, f"its entry {name!r} has {entries[name].file_size} bytes, more than {limit}")
        byte_order = archive.read(prefix + "byteorder") if prefix + "byteorder" in entries else b"little"
        if byte_order not in (b"little", b"big"):
            raise damaged(path, f"its byte order is {byte_order[:20]!r}")
        state = load(io.BytesIO(archive.read(pickles[0])))
    places = {
        name.removeprefix(prefix + "data/"): _zip_place(path, data, info)
        for name, info in entries.items()
        if name.startswith(prefix + "data/")
    }
    _check_disjoint(path, places)
    return state, places, byte_order == b"little"


def _check_disjoint(path: pathlib.Path, places: dict[str, _Place]) -> None:
    """Check that storages do not overlap, so that all of them together are not larger than the file."""
    end, before = 0, ""
    for place, key in sorted((place, key) for key, place in places.items() if place.size):
        if place.offset < end:
            raise damaged(path, f"its storages {before!r} and {key!r} overlap")
        end, before = place.offset + place.size, key


def _zip_place(path: pathlib.Path, data: np.ndarray, info: zipfile.ZipInfo) -> _Place:
    header = data[info.header_offset : info.header_offset + LOCAL_HEADER].tobytes()
    if info.header_offset < 0 or len(header) < LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise damaged(path, f"its entry {info.filename!r} does not begin where its directory points")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    offset = info.header_offset + LOCAL_HEADER + lengths
    if offset + info.file_size > len(data):
        raise damaged(path, f"its entry {info.filename!r} reaches beyond the end of the file")
    return _Place(offset, info.file_size)


def _open_legacy(path: pathlib.Path, data: np.ndarray) -> tuple[Any, dict[str, _Place], bool]:
    """Return (state dict, places of the storages, whether they are little-endian)."""
    with open(path, "rb") as file:
        if load(file) != MAGIC_NUMBER or load(file) != PROTOCOL_VERSION:
            raise damaged(path, "it is not a PyTorch file (it has another magic number)")
        little = load(file).get("little_endian", True) is True
        dtypes: dict[str, np.dtype] = {}
        state, keys = load(file, dtypes), load(file)
        position = file.tell()
    places: dict[str, _Place] = {}
    if type(keys) is not list:
        raise damaged(path, "it has no list of its storages")
    for key in keys:
        if type(key) is not str or key not in dtypes:
            raise damaged(path, f"no tensor determines the type of storage {shown(key)}")
        size = int.from_bytes(data[position : position + 8].tobytes(), "little" if little else "big")
        num_bytes = size * dtypes[key].itemsize
        if position + 8 + num_bytes > len(data):
            raise damaged(path, f"it is truncated: storage {key!r} ends at byte {position + 8 + num_bytes}")
        places[key] = _Place(position + 8, num_bytes)
        position += 8 + num_bytes
    return state, places, little


def _stored(
    path: pathlib.Path, data: np.ndarray, name: str, tensor: TorchTensor, places: dict[str, _Place], little: bool
) -> StoredTensor:
    """Check the pickle's description of a tensor against the bytes of the file."""
    storage, dtype = tensor.storage, tensor.dtype
    if not isinstance(storage, Storage) or not isinstance(dtype, np.dtype):
        raise damaged(path, "it has no storage or no dtype", name)
    shape = check_shape(path, name, tensor.shape, dtype)
    strides = check_shape(path, name, tensor.strides, dtype)
    if len(strides) != len(shape) or not all(
        is_count(n) for n in (tensor.first, storage.root_size, storage.first, storage.size)
    ):
        raise damaged(path, "its strides and offsets do not fit its shape", name)
    place = places.get(storage.key)
    if place is None:
        raise damaged(path, f"its storage {storage.key!r} is missing", name)
    if storage.root_size * storage.dtype.itemsize != place.size:
        needed = storage.root_size * storage.dtype.itemsize
        raise damaged(path, f"its storage {storage.key!r} has {place.size} bytes instead of {needed}", name)
    end = 0
    if math.prod(shape):
        last = tensor.first + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        end = (last + 1) * dtype.itemsize
    if end > storage.size * storage.dtype.itemsize or storage.first + storage.size > storage.root_size:
        raise damaged(path, f"it reaches beyond the {storage.size} elements of its storage {storage.key!r}", name)
    if math.prod(shape) * dtype.itemsize > max(place.size, 1):
        raise damaged(path, f"its shape {shape} has more elements than its storage {storage.key!r}", name)
    first_byte = place.offset + storage.first * storage.dtype.itemsize + tensor.first * dtype.itemsize
    in_bytes = tuple(stride * dtype.itemsize for stride in strides)

    def read() -> np.ndarray:
        if end == 0:
            return np.zeros(shape, dtype)
        if little:
            return np.ndarray(shape, dtype, data, first_byte, in_bytes)
        if dtype.kind in "biufc" and dtype.isbuiltin == 1:
            return np.ndarray(shape, dtype.newbyteorder(">"), data, first_byte, in_bytes).astype(dtype)
        unsigned = np.dtype(f"u{dtype.itemsize}")  # NumPy supports bfloat16 in native byte order only
        return np.ndarray(shape, unsigned.newbyteorder(">"), data, first_byte, in_bytes).astype(unsigned).view(dtype)

    return StoredTensor(path, shape, dtype, read)
