"""Reads the pickles inside PyTorch's files without running what they ask for.

A pickle is a program that may call anything it can name. Here it may name only the handful of things that a state dict
is made of, and even those are replaced by inert descriptions: nothing of a file is ever called.
"""

from __future__ import annotations

import pickle
import pickletools
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


# A pickle of 10,000 tensors has 300,000 instructions.
MAX_INSTRUCTIONS = 1_000_000
MAX_ARGUMENT = 2**20  # bytes of a text or number
MAX_LINE = 4000
MAX_BITS = 1000  # of a number
MAX_ARGUMENTS = 16  # of a call
MAX_ITEMS = 10_000  # of an OrderedDict that is made at once


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


class StateDict(dict[str, Any]):
    """An OrderedDict (any dict is ordered) of what has a text as its key.

    Attributes:
      unnamed: whether a tensor had another key. Such keys are never hashed: one pickle's take years.
    """

    __slots__ = ("unnamed",)

    def __init__(self) -> None:
        self.unnamed = False

    def put(self, key: Any, value: Any) -> None:
        if type(key) is str:
            self[key] = value
        elif isinstance(value, TorchTensor):
            self.unnamed = True


def _ordered(items: Any = ()) -> StateDict:
    """An OrderedDict; Python 2 wrote its items as pairs."""
    found = StateDict()
    if not isinstance(items, list | tuple) or len(items) > MAX_ITEMS:
        raise pickle.UnpicklingError("an OrderedDict of what are no items")
    for key, value in items:
        found.put(key, value)
    return found


def _tensor_v2(storage: Storage, first: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> TorchTensor:
    return TorchTensor(storage, first, shape, strides, storage.dtype)


def _tensor_v3(
    storage: Storage,
    first: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    grad: bool,
    hooks: Any,
    kind: _Type,
    *_: Any,
) -> TorchTensor:
    return TorchTensor(storage, first, shape, strides, kind.dtype)


_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Callable(_ordered),
    ("torch._utils", "_rebuild_tensor"): _Callable(_tensor_v2),  # before PyTorch 0.4
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(_tensor_v2),
    ("torch._utils", "_rebuild_tensor_v3"): _Callable(_tensor_v3),  # dtypes without a storage class, such as float8
    ("torch._utils", "_rebuild_parameter"): _Callable(lambda tensor, *_: tensor),
    **{(module, name): _Type(dtype) for name, dtype in STORAGES.items() for module in ("torch", "torch.cuda")},
    ("torch.storage", "UntypedStorage"): _Type(STORAGES["UntypedStorage"]),
    **{("torch", name): _Type(dtype) for name, dtype in TORCH_DTYPES.items()},
}


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NEW = {"EMPTY_LIST": list, "EMPTY_SET": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": StateDict}
_VALUES = set(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_OLD_TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING")  # of Python 2
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Arguments:
    """A file for pickletools, which gives no more than an argument of a state dict has."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def read(self, size: int) -> bytes:
        if size > MAX_ARGUMENT:
            raise pickle.UnpicklingError(f"an argument of {size} bytes")
        return self.file.read(size)

    def readline(self) -> bytes:
        return self.file.readline(MAX_LINE)


class _Machine:
    """Runs a pickle on a stack of plain values. It never hashes, compares, prints or walks through what a pickle made.

    A few bytes can make a value that is a million deep, or that holds itself 2^60 times, and each of these would hang or crash then.
    """

    def __init__(self, file: BinaryIO, storages: dict[str, np.dtype]) -> None:
        self.file, self.storages = _Arguments(file), storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for count in range(MAX_INSTRUCTIONS):
            opcode = _OPCODES.get(self.file.read(1).decode("latin-1"))
            if opcode is None:
                raise pickle.UnpicklingError(f"instruction {count} is none, or missing")
            argument = None if opcode.arg is None else opcode.arg.reader(self.file)  # type: ignore[arg-type]  # reads and readlines alone
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                argument = len(self.memo) if argument is None else argument
                if argument > count:
                    raise pickle.UnpicklingError(f"memo entry {argument} at instruction {count}")
                self.memo[argument] = self.stack[-1]
            else:
                self.step(opcode.name, argument)
        raise pickle.UnpicklingError(f"more than {MAX_INSTRUCTIONS} instructions")

    def step(self, name: str, argument: Any) -> None:
        """One instruction; those that a pickle of plain values and calls does not need are refused."""
        push, pop = self.stack.append, self.stack.pop
        if name in _VALUES:
            if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
                raise pickle.UnpicklingError(f"a number of {argument.bit_length()} bits")
            push(argument)
        elif name in _OLD_TEXTS:
            push(argument.encode("latin-1").decode("utf-8"))
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _NEW:
            push(_NEW[name]())
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            push(self.memo[argument])
        elif name == "MARK":
            push(_MARK)
        elif name in _TUPLES:
            items = [pop() for _ in range(_TUPLES[name])]
            push(tuple(items[::-1]))
        elif name in ("TUPLE", "LIST", "FROZENSET"):
            push((tuple if name == "TUPLE" else list)(self.since_mark()))
        elif name == "APPEND":
            value = pop()
            self.top(list).append(value)
        elif name in ("APPENDS", "ADDITEMS"):
            values = self.since_mark()
            self.top(list).extend(values)
        elif name == "SETITEM":
            value, key = pop(), pop()
            self.top(StateDict).put(key, value)
        elif name in ("SETITEMS", "DICT"):
            values = self.since_mark()
            if name == "DICT":
                push(StateDict())
            for key, value in zip(values[::2], values[1::2], strict=True):
                self.top(StateDict).put(key, value)
        elif name == "POP":
            pop()
        elif name == "POP_MARK":
            self.since_mark()
        elif name == "DUP":
            push(self.stack[-1])
        elif name == "GLOBAL":
            push(_known(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            name, module = pop(), pop()
            push(_known(module, name))
        elif name == "REDUCE":
            arguments, function = pop(), pop()
            push(_call(function, arguments))
        elif name == "BINPERSID":
            push(self.storage(pop()))
        elif name == "BUILD":  # attributes of a state dict, such as _metadata, which nothing reads
            pop()
            self.top(StateDict)
        elif name not in ("PROTO", "FRAME"):
            raise pickle.UnpicklingError(f"an instruction {name}, which no state dict has")

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise pickle.UnpicklingError(f"a {type(self.stack[-1]).__name__} where a {kind.__name__} should be")
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def storage(self, pid: Any) -> Storage:
        if type(pid) is not tuple or len(pid) not in (5, 6):
            raise pickle.UnpicklingError("a storage that is no tuple of 5 or 6")
        tag, kind, key, _, size, *view = pid
        if type(tag) is not str or tag != "storage" or not isinstance(kind, _Type) or type(key) is not str:
            raise pickle.UnpicklingError("a storage without a kind or a key")
        self.storages[key] = kind.dtype
        if view and view[0] is not None:  # only the format before PyTorch 1.6 has views: (key, first, size)
            _, first, part = view[0]
            return Storage(key, kind.dtype, size, first, part)
        return Storage(key, kind.dtype, size, 0, size)


def _known(module: Any, name: Any) -> Any:
    """Only what is in the table; Python's own way of importing is never taken."""
    if type(module) is not str or type(name) is not str:
        raise pickle.UnpicklingError("a name that is no text")
    try:
        return _ALLOWED[module, name]
    except KeyError:
        raise ForbiddenGlobal(f"{module}.{name}") from None


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Callable) or type(arguments) is not tuple or len(arguments) > MAX_ARGUMENTS:
        raise pickle.UnpicklingError("a call of what is no function")
    return function(*arguments)


def load(file: BinaryIO, storages: dict[str, np.dtype] | None = None) -> Any:
    """One pickle from the file's position, which is then behind it. Tensors come as TorchTensor, mappings with their texts alone as keys.

    Args:
      file: of which nothing is read behind the pickle.
      storages: receives the dtype of each storage that is named, by key.

    Raises:
      ForbiddenGlobal: it names something else than a state dict is made of.
      Exception: of many kinds, for a stream that is no pickle, or a larger one than a state dict is.
    """
    return _Machine(file, {} if storages is None else storages).run()
