"""Safe reading of the pickles in PyTorch's files.

A pickle is a program that can call anything that it can name. Here it can name only the few classes and functions of a state
dict, and these are replaced by inert descriptions, so no code that a file names is ever called.
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
    "UntypedStorage": np.dtype(np.uint8),  # its size is in bytes; the tensor has the dtype
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
MAX_ITEMS = 10_000  # of an OrderedDict built in one call


class ForbiddenGlobal(Exception):
    """Raised for a pickle that names something that state dicts do not need. `str(error)` is that name."""


class Storage(NamedTuple):
    """Elements `first` to `first + size` of the storage `key`, which has `root_size` elements."""

    key: str
    dtype: np.dtype
    root_size: int
    first: int
    size: int


class TorchTensor(NamedTuple):
    """Unchecked description of a tensor in a file. `first` and `strides` count elements of `dtype`."""

    storage: Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype


class _Callable(NamedTuple):
    """Replacement for a function or class. A tuple, so that a pickle cannot set its attributes."""

    make: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.make(*args)


class _Type(NamedTuple):
    """Replacement for a storage class or a dtype; NumPy's dtypes have a `__setstate__` that a pickle could call."""

    dtype: np.dtype


class StateDict(dict[str, Any]):
    """An OrderedDict (any dict is ordered) of the items with a string as key.

    Attributes:
      unnamed: whether a tensor had a key of another type. Such keys are never hashed: hashing a malicious one can take years.
    """

    __slots__ = ("unnamed",)

    def __init__(self) -> None:
        self.unnamed = False

    def put(self, key: Any, value: Any) -> None:
        """Set an item if its key is a string."""
        if type(key) is str:
            self[key] = value
        elif isinstance(value, TorchTensor):
            self.unnamed = True


def _ordered(items: Any = ()) -> StateDict:
    """Build an OrderedDict; files of Python 2 have its items as pairs."""
    state = StateDict()
    if not isinstance(items, list | tuple) or len(items) > MAX_ITEMS:
        raise pickle.UnpicklingError("an OrderedDict without a list of items")
    for key, value in items:
        state.put(key, value)
    return state


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
    """A file for pickletools that limits the size of arguments."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def read(self, size: int) -> bytes:
        if size > MAX_ARGUMENT:
            raise pickle.UnpicklingError(f"an argument of {size} bytes")
        return self.file.read(size)

    def readline(self) -> bytes:
        return self.file.readline(MAX_LINE)


class _Machine:
    """Runs a pickle on a stack of plain values. It never hashes, compares, prints or traverses the values that a pickle makes.

    A few bytes can make a value that is nested a million times, or that contains itself 2^60 times; any such operation would
    then hang or crash.
    """

    def __init__(self, file: BinaryIO, storages: dict[str, np.dtype]) -> None:
        self.file, self.storages = _Arguments(file), storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for count in range(MAX_INSTRUCTIONS):
            opcode = _OPCODES.get(self.file.read(1).decode("latin-1"))
            if opcode is None:
                raise pickle.UnpicklingError(f"instruction {count} is invalid or missing")
            argument = None if opcode.arg is None else opcode.arg.reader(self.file)  # type: ignore[arg-type]  # it only reads
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
        """Run one instruction; those that state dicts do not need are rejected."""
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
            push(_look_up(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            name, module = pop(), pop()
            push(_look_up(module, name))
        elif name == "REDUCE":
            arguments, function = pop(), pop()
            push(_call(function, arguments))
        elif name == "BINPERSID":
            push(self.storage(pop()))
        elif name == "BUILD":  # attributes of a state dict, such as _metadata, which are not used
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
            raise pickle.UnpicklingError("a storage that is not a tuple of 5 or 6")
        tag, kind, key, _, size, *view = pid
        if type(tag) is not str or tag != "storage" or not isinstance(kind, _Type) or type(key) is not str:
            raise pickle.UnpicklingError("a storage without a kind or a key")
        self.storages[key] = kind.dtype
        if view and view[0] is not None:  # views (key, first, size) occur only in the format before PyTorch 1.6
            _, first, part = view[0]
            return Storage(key, kind.dtype, size, first, part)
        return Storage(key, kind.dtype, size, 0, size)


def _look_up(module: Any, name: Any) -> Any:
    """Look up a name in the table; nothing is ever imported."""
    if type(module) is not str or type(name) is not str:
        raise pickle.UnpicklingError("a name that is not a string")
    try:
        return _ALLOWED[module, name]
    except KeyError:
        raise ForbiddenGlobal(f"{module}.{name}") from None


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Callable) or type(arguments) is not tuple or len(arguments) > MAX_ARGUMENTS:
        raise pickle.UnpicklingError("a call of something that is not a function")
    return function(*arguments)


def load(file: BinaryIO, storages: dict[str, np.dtype] | None = None) -> Any:
    """Read one pickle from the file's position. Tensors become TorchTensor, and mappings keep only items with string keys.

    Args:
      file: nothing after the pickle is read from it.
      storages: receives the dtype of each storage, by key.

    Raises:
      ForbiddenGlobal: the pickle names something that state dicts do not need.
      Exception: of many types, if the stream is not a pickle or larger than those of state dicts.
    """
    return _Machine(file, {} if storages is None else storages).run()
