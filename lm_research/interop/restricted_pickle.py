"""Reads the pickles inside PyTorch's files without running what they ask for.

A pickle is a program that may call anything it can name. Here it may name only the handful of things that a state dict
is made of, and even those are replaced by inert descriptions: nothing of a file is ever called.
"""

from __future__ import annotations

import pickle
import pickletools
import reprlib
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

STORAGES = {
    "BoolStorage": np.dtype(np.bool_),
    "ByteStorage": np.dtype(np.uint8),
    "CharStorage": np.dtype(np.int8),
    "ShortStorage": np.dtype(np.int16),
    "IntStorage": np.dtype(np.int32),
    "LongStorage": np.dtype(np.int64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "ComplexFloatStorage": np.dtype(np.complex64),
    "ComplexDoubleStorage": np.dtype(np.complex128),
    "UntypedStorage": np.dtype(np.uint8),  # its sizes are bytes; the tensor on it brings a dtype
}
_NUMPY_NAMES = "uint8 int8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64 complex64 complex128".split()
_ML_NAMES = "bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu".split()
TORCH_DTYPES = {
    "bool": np.dtype(np.bool_),
    **{name: np.dtype(name) for name in _NUMPY_NAMES},
    **{name: np.dtype(getattr(ml_dtypes, name)) for name in _ML_NAMES},
}


class ForbiddenGlobal(Exception):
    """A pickle names something that no state dict needs. `str(error)` is that name."""


class Storage(NamedTuple):
    """A run of numbers in the file: `size` of them from `first` on, in the storage called `key` of `root_size`."""

    key: str
    dtype: np.dtype
    root_size: int
    first: int
    size: int


class TorchTensor(NamedTuple):
    """What a file says of a tensor; nothing of it is checked. `first` and `strides` count elements of `dtype`."""

    storage: Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype


class _Callable(NamedTuple):
    """Stands for a function or class. A tuple, so that a pickle cannot set attributes of it."""

    make: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.make(*args)


class _Type(NamedTuple):
    """Stands for a class of storages or a dtype; NumPy's own dtypes have a `__setstate__` that a pickle could call."""

    dtype: np.dtype


class _Dict(dict):
    """An OrderedDict (any dict is ordered) whose pickled attributes, such as `_metadata`, are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


def _tensor_v2(storage: Storage, first: int, shape: tuple, strides: tuple, *_: Any) -> TorchTensor:
    return TorchTensor(storage, first, shape, strides, storage.dtype)


def _tensor_v3(
    storage: Storage, first: int, shape: tuple, strides: tuple, grad: bool, hooks: Any, kind: _Type, *_: Any
) -> TorchTensor:
    return TorchTensor(storage, first, shape, strides, kind.dtype)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Callable(_Dict),
    ("torch._utils", "_rebuild_tensor"): _Callable(_tensor_v2),  # before PyTorch 0.4
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(_tensor_v2),
    ("torch._utils", "_rebuild_tensor_v3"): _Callable(_tensor_v3),  # dtypes without a storage class, such as float8
    ("torch._utils", "_rebuild_parameter"): _Callable(lambda tensor, *_: tensor),
    **{(module, name): _Type(dtype) for name, dtype in STORAGES.items() for module in ("torch", "torch.cuda")},
    ("torch.storage", "UntypedStorage"): _Type(STORAGES["UntypedStorage"]),
    **{("torch", name): _Type(dtype) for name, dtype in TORCH_DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, storages: dict[str, np.dtype]) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        """Only what is in the table; Python's own way of importing is never taken."""
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise ForbiddenGlobal(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Storage:
        tag, kind, key, _, size, *view = pid
        if tag != "storage" or not isinstance(kind, _Type) or not isinstance(key, str):
            raise pickle.UnpicklingError(f"{reprlib.repr(pid)} is not a storage")
        self.storages[key] = kind.dtype
        if view and view[0] is not None:  # only the format before PyTorch 1.6 has views: (key, first, size)
            return Storage(key, kind.dtype, size, view[0][1], view[0][2])
        return Storage(key, kind.dtype, size, 0, size)


def load(file: BinaryIO, storages: dict[str, np.dtype] | None = None) -> Any:
    """One pickle from the file's position, which is then behind it. Tensors come as TorchTensor.

    Args:
      file: can be sought.
      storages: receives the dtype of each storage that is named, by key.

    Raises:
      ForbiddenGlobal: it names something else than a state dict is made of.
      Exception: of many kinds, for a stream that is no pickle.
    """
    start = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        # The memo is a table as long as its largest number, which a few bytes can make gigabytes.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > count:
            raise pickle.UnpicklingError(f"memo entry {argument} at instruction {count}")
    file.seek(start)
    return _Unpickler(file, {} if storages is None else storages).load()
