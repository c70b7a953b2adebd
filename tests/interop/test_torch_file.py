"""PyTorch's files: both forms, strides, shared storages, damage, and pickles that request more than weights."""

from __future__ import annotations

import base64
import io
import os
import pathlib
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from helpers.torch_files import GOLDEN_LEGACY, GOLDEN_ZIP
from lm_research.errors import PretrainedError
from lm_research.interop import restricted_pickle, torch_file
from lm_research.interop.tensor_files import TensorSource, open_tensors


def text(value: str) -> bytes:
    """Pickle instructions that make a text; the next functions are similar."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def several(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def storage(kind: str = "FloatStorage", key: str = "0", size: int = 6, view: bytes | None = None) -> bytes:
    parts = [text("storage"), named("torch", kind), text(key), text("cpu"), integer(size)]
    return several(*parts, *([view] if view else [])) + b"Q"


def tensor(stored: bytes, first: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    sizes, steps = (several(*map(integer, numbers)) for numbers in (shape, strides))
    hooks = named("collections", "OrderedDict") + b")R"
    return (
        named("torch._utils", "_rebuild_tensor_v2")
        + several(stored, integer(first), sizes, steps, b"\x89", hooks)
        + b"R"
    )


def mapping(**entries: bytes) -> bytes:
    return b"}(" + b"".join(text(name) + value for name, value in entries.items()) + b"u"


def a_pickle(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def zipped(state: bytes, storages: dict[str, bytes], byte_order: bytes | None = b"little", **options: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        archive.writestr("weights/data.pkl", a_pickle(state))
        if byte_order:
            archive.writestr("weights/byteorder", byte_order)
        for key, content in storages.items():
            archive.writestr(f"weights/data/{key}", content)
    return buffer.getvalue()


def legacy(state: bytes, storages: dict[str, tuple[int, bytes]]) -> bytes:
    system = mapping(little_endian=b"\x88")
    start = [
        b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19",
        integer(1001),
        system,
        state,
        b"](" + b"".join(map(text, storages)) + b"e",
    ]
    data = [struct.pack("<q", size) + content for size, content in storages.values()]
    return b"".join([*map(a_pickle, start), *data])


def opened(directory: pathlib.Path, content: bytes) -> TensorSource:
    (directory / "pytorch_model.bin").write_bytes(content)
    return open_tensors(directory)


SIX = np.arange(6, dtype="<f4")
MATRIX = tensor(storage(), 0, (2, 3), (3, 1))


@pytest.mark.parametrize("golden", [GOLDEN_ZIP, GOLDEN_LEGACY], ids=["zip", "legacy"])
def test_reads_what_torch_wrote(golden: str, tmp_path: pathlib.Path) -> None:
    source = opened(tmp_path, zlib.decompress(base64.b85decode(golden)))
    assert (source.format, source.names) == ("pytorch", ["matrix", "transposed", "half", "steps"])
    assert source.file("half") == tmp_path / "pytorch_model.bin"
    expected = {
        "matrix": SIX.reshape(2, 3),
        "transposed": SIX.reshape(2, 3).T,
        "half": np.array([1.5, -2], ml_dtypes.bfloat16),
        "steps": np.array(7),
    }
    for name, array in expected.items():
        found = source.read(name)
        assert (source.shape(name), source.dtype(name)) == (found.shape, found.dtype) == (array.shape, array.dtype)
        assert np.array_equal(found, array)
    assert not source.read("matrix").flags.writeable and not source.read("matrix").flags.owndata


KINDS = {
    "BoolStorage": np.bool_,
    "ByteStorage": np.uint8,
    "CharStorage": np.int8,
    "ShortStorage": np.int16,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "DoubleStorage": np.float64,
    "ComplexFloatStorage": np.complex64,
}


@pytest.mark.parametrize("order", [b"little", b"big", None])
@pytest.mark.parametrize("kind", KINDS)
def test_every_type_in_both_byte_orders(kind: str, order: bytes | None, tmp_path: pathlib.Path) -> None:
    array = np.array([0, 1, 1, 0, 3, 5]).astype(KINDS[kind])
    if order == b"big":
        parts = array.view(np.float32) if array.dtype.kind == "c" else array.view(f"u{array.itemsize}")
        content = parts.byteswap().tobytes()
    else:
        content = array.tobytes()
    source = opened(tmp_path, zipped(mapping(x=tensor(storage(kind), 1, (2, 2), (1, 2))), {"0": content}, order))
    assert source.dtype("x") == source.read("x").dtype == array.dtype
    assert np.array_equal(source.read("x"), array[[[1, 3], [2, 4]]])


def test_strides_offsets_and_shared_storages(tmp_path: pathlib.Path) -> None:
    state = mapping(
        tied=MATRIX,
        also=MATRIX,
        column=tensor(storage(), 1, (2,), (3,)),
        same=tensor(storage(), 5, (2, 2), (0, 0)),
        scalar=tensor(storage(), 4, (), ()),
        none=tensor(storage("LongStorage", "1", 0), 0, (0, 3), (3, 1)),
    )
    source = opened(tmp_path, zipped(state, {"0": SIX.tobytes(), "1": b""}))
    assert np.array_equal(source.read("tied"), SIX.reshape(2, 3)) and np.shares_memory(
        *map(source.read, ["tied", "also"])
    )
    assert source.read("column").tolist() == [1, 4] and source.read("same").tolist() == [[5, 5], [5, 5]]
    assert source.read("scalar").tolist() == 4 and source.read("scalar").shape == ()
    assert (source.read("none").shape, source.read("none").dtype) == ((0, 3), np.int64)


def test_float8_on_an_untyped_storage(tmp_path: pathlib.Path) -> None:
    array = np.array([1, -2, 0.5], ml_dtypes.float8_e4m3fn)
    parts = [storage("UntypedStorage", size=3), integer(1), several(integer(2)), several(integer(1)), b"\x89", b"N"]
    state = named("torch._utils", "_rebuild_tensor_v3") + several(*parts, named("torch", "float8_e4m3fn")) + b"R"
    source = opened(tmp_path, zipped(mapping(x=state), {"0": array.tobytes()}))
    assert source.read("x").tolist() == [-2, 0.5] and source.dtype("x") == ml_dtypes.float8_e4m3fn


def test_views_of_legacy_storages(tmp_path: pathlib.Path) -> None:
    view = several(text("view"), integer(2), integer(3))
    state = mapping(x=tensor(storage(view=view), 1, (2,), (1,)), whole=MATRIX)
    source = opened(tmp_path, legacy(state, {"0": (6, SIX.tobytes())}))
    assert source.read("x").tolist() == [3, 4] and np.array_equal(source.read("whole"), SIX.reshape(2, 3))
    beyond = mapping(x=tensor(storage(view=view), 2, (2,), (1,)))
    with pytest.raises(PretrainedError, match=r"tensor 'x': it reaches beyond the 3 elements of its storage '0'"):
        opened(tmp_path, legacy(beyond, {"0": (6, SIX.tobytes())}))


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrapped_state_dicts_and_entries_that_are_not_tensors(wrapper: str, tmp_path: pathlib.Path) -> None:
    inner = mapping(w=MATRIX, steps=integer(3), note=text("hello"), nothing=b"N")
    parameter = named("torch._utils", "_rebuild_parameter") + several(
        MATRIX, b"\x88", named("collections", "OrderedDict") + b")R"
    )
    state = mapping(epoch=integer(2), other=parameter + b"R", **{wrapper: inner})
    assert opened(tmp_path, zipped(state, {"0": SIX.tobytes()})).names == ["w"]
    flat = mapping(epoch=integer(2), other=parameter + b"R")
    assert opened(tmp_path, zipped(flat, {"0": SIX.tobytes()})).names == ["other"]


def test_attributes_of_a_state_dict_are_dropped(tmp_path: pathlib.Path) -> None:
    state = named("collections", "OrderedDict") + b")R(" + text("w") + MATRIX + b"u" + mapping(_metadata=b"}") + b"b"
    assert opened(tmp_path, zipped(state, {"0": SIX.tobytes()})).names == ["w"]


GOOD_ZIP = zipped(mapping(w=MATRIX), {"0": SIX.tobytes()})
GOOD_LEGACY = legacy(mapping(w=MATRIX), {"0": (6, SIX.tobytes())})


def zip_with(
    stored: bytes, first: int = 0, shape: tuple = (2, 3), strides: tuple = (3, 1), content: bytes = SIX.tobytes()
):
    return zipped(mapping(w=tensor(stored, first, shape, strides)), {"0": content})


DAMAGE: dict[str, tuple[bytes, str]] = {
    "truncated zip": (GOOD_ZIP[:-30], "it is not a PyTorch file"),
    "truncated pickle": (GOOD_LEGACY[:60], "it is not a PyTorch file"),
    "truncated legacy": (GOOD_LEGACY[:-1], "it is truncated: storage '0' ends at byte"),
    "no number of elements": (GOOD_LEGACY[:-26], "it is truncated"),
    "empty": (b"", "it is empty"),
    "noise": (b"nothing of the kind", "it is not a PyTorch file"),
    "other magic number": (a_pickle(integer(5)), "it has another magic number"),
    "tar": (b"\0" * 257 + b"ustar", "the tar format of PyTorch 0.1"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "zip of something else": (zipped(b"}", {}).replace(b"data.pkl", b"none.pkl"), "without data.pkl"),
    "compressed": (zipped(mapping(w=MATRIX), {"0": bytes(24)}, compression=8), "compressed"),
    "byte order": (zipped(mapping(w=MATRIX), {"0": SIX.tobytes()}, b"middle"), "its byte order is b'middle'"),
    "checksum": (GOOD_ZIP.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3"), "Bad CRC-32"),
    "local header": (
        b"XX\x03\x04".join(GOOD_ZIP.rsplit(b"PK\x03\x04", 1)),
        "its entry 'weights/data/0' does not begin where",
    ),
    "no storage": (zipped(mapping(w=MATRIX), {"1": SIX.tobytes()}), "tensor 'w': its storage '0' is missing"),
    "short storage": (zip_with(storage(), content=bytes(20)), "tensor 'w': its storage '0' has 20 bytes instead of 24"),
    "huge storage": (zip_with(storage(size=2**62)), "tensor 'w': its storage '0' has 24 bytes instead of"),
    "beyond by offset": (zip_with(storage(), first=1), "tensor 'w': it reaches beyond the 6 elements"),
    "beyond by stride": (zip_with(storage(), strides=(3, 2)), "tensor 'w': it reaches beyond the 6 elements"),
    "beyond by shape": (zip_with(storage(), shape=(3, 3)), "tensor 'w': it reaches beyond the 6 elements"),
    "beyond by 2**62": (zip_with(storage(), first=2**62), "tensor 'w': it reaches beyond the 6 elements"),
    "negative stride": (zip_with(storage(), first=5, strides=(-3, 1)), "tensor 'w': .* is not a shape"),
    "negative offset": (zip_with(storage(), first=-1), "tensor 'w': its strides and offsets do not fit"),
    "negative size": (zip_with(storage(), shape=(-2, -3)), "tensor 'w': .* is not a shape"),
    "fewer strides": (zip_with(storage(), strides=(1,)), "tensor 'w': its strides and offsets do not fit"),
    "enormous": (zip_with(storage(), shape=(2**40, 2**40), strides=(0, 0)), "tensor 'w': .* too large"),
    "no tensors": (zipped(mapping(a=integer(1)), {}), "it holds no tensors"),
    "no state dict": (zipped(MATRIX, {"0": SIX.tobytes()}), "it holds no state dict"),
    "number as name": (zipped(b"}" + integer(3) + MATRIX + b"s", {"0": SIX.tobytes()}), "a name that is not a string"),
    "memo of gigabytes": (zipped(b"}r\xff\xff\xff\xff", {}), "memo entry 4294967295"),
    "not a tensor's storage": (zip_with(integer(3)), "it is not a PyTorch file"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(what: str, tmp_path: pathlib.Path) -> None:
    content, message = DAMAGE[what]
    with pytest.raises(PretrainedError, match=message) as caught:
        opened(tmp_path, content)
    assert str(tmp_path / "pytorch_model.bin") in str(caught.value) and "\n" not in str(caught.value)


# ((), ()), then twice that, ... : 2^60 empty tuples in 300 bytes. A hash, a comparison or a print of it takes years.
DOUBLED = b")q\x000" + b"".join(b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(60)) + b"h\x3c"
DEEP = b")" + b"\x85" * 100_000  # (((...))): a hash of it overflows the stack of the C library
ENDLESS = b"]q\x00h\x00a"  # a list that contains itself
ORDERED = named("collections", "OrderedDict")


@pytest.mark.parametrize("value", [DOUBLED, DEEP, ENDLESS], ids=["doubled", "deep", "endless"])
@pytest.mark.parametrize(
    ("around", "message"),
    [
        (lambda value: mapping(w=MATRIX, other=value), None),
        (lambda value: b"}" + value + b"K\x01s" + b"(" + text("w") + MATRIX + b"u", None),
        (lambda value: b"}(" + value + MATRIX + text("w") + MATRIX + b"u", "a name that is not a string"),
        (
            lambda value: ORDERED + several(b"](" + several(value, b"N") + several(text("w"), MATRIX) + b"e") + b"R",
            None,
        ),
        (lambda value: mapping(w=value + b"Q"), "a storage"),
        (
            lambda value: mapping(w=several(text("storage"), value, text("0"), text("cpu"), b"K\x06") + b"Q"),
            "a storage",
        ),
        (
            lambda value: mapping(
                w=several(value, named("torch", "FloatStorage"), text("0"), text("cpu"), b"K\x06") + b"Q"
            ),
            "a storage",
        ),
        (lambda value: mapping(w=tensor(storage(), 0, (), ()).replace(b"(t", value, 1)), "tensor 'w'"),
        (lambda value: mapping(w=value + b"R"), "a call of something that is not a function"),
        (lambda value: mapping(w=value + b"}b"), "where a StateDict should be"),
        (lambda value: value, "it holds no state dict"),
    ],
)
def test_nested_values_neither_hang_nor_crash(
    value: bytes, around: Callable[[bytes], bytes], message: str | None, tmp_path: pathlib.Path
) -> None:
    content = zipped(around(value), {"0": SIX.tobytes()})
    if message is None:
        assert opened(tmp_path, content).names == ["w"]
    else:
        with pytest.raises(PretrainedError, match=message) as caught:
            opened(tmp_path, content)
        assert len(str(caught.value)) < 1000


def test_names_of_storages_that_are_nested_are_refused(tmp_path: pathlib.Path) -> None:
    content = legacy(mapping(w=MATRIX), {"0": (6, SIX.tobytes())})
    with pytest.raises(PretrainedError, match=r"no tensor determines the type of storage \[tuple, tuple\]"):
        opened(tmp_path, content.replace(b"](" + text("0") + b"e", b"](" + DOUBLED + b"e"))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (b"B\xff\xff\xff\xff", "an argument of 4294967295 bytes"),
        (b"X\xff\xff\xff\x7f", "an argument of 2147483647 bytes"),
        (b"\x8d" + struct.pack("<Q", 2**62), "an argument of 4611686018427387904 bytes"),
        (b"\x8e" + struct.pack("<Q", 2**63), "it is not a PyTorch file"),
        (b"\x8b" + struct.pack("<i", 2**30), "an argument of 1073741824 bytes"),
        (b"\x8b" + struct.pack("<i", 5000) + b"\x01" * 5000, "a number of 39993 bits"),  # 8 x 4,999 + 1
        (b"I" + b"9" * 10_000 + b"\n", "it is not a PyTorch file"),
        (b"h\x07", "it is not a PyTorch file"),
        (b"]" * 1_001, "more than 1000 instructions"),
        (b"t", "it is not a PyTorch file"),
        (b"(i os\nsystem\n", "an instruction INST|it is not a PyTorch file"),
        (b"\x82\x01", "an instruction EXT1, which no state dict has"),
    ],
)
def test_sizes_that_a_pickle_claims_are_not_allocated(
    state: bytes, message: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restricted_pickle, "MAX_INSTRUCTIONS", 1000)
    for content in (zipped(state, {}), legacy(state, {})):
        with pytest.raises(PretrainedError, match=message):
            opened(tmp_path, content)


def run(content: bytes) -> object:
    return restricted_pickle.load(io.BytesIO(content))


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_read_as_pickle_reads_them(protocol: int) -> None:
    """Sets, which a machine that hashes nothing cannot make, are lists; dicts keep their items with names."""
    shared = [1]
    values = [None, True, False, 0, 255, 256, -1, 2**31, 2**70, -(2**70), 1.5, "a", "ä" * 300, b"", b"b" * 300]
    values += [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1, [2, 3]], [shared, shared], bytearray(b"c")]
    if protocol < 3:  # they are written as calls of _codecs.encode
        values = [value for value in values if not isinstance(value, (bytes, bytearray))]
    values = [value for value in values if not (isinstance(value, bytearray) and protocol < 5)]
    for value in values:
        assert run(pickle.dumps(value, protocol)) == value
    assert run(pickle.dumps({"a": 1, "b": {"c": (2,)}, 3: 4}, protocol)) == {"a": 1, "b": {"c": (2,)}}
    if protocol == 4:
        assert sorted(run(pickle.dumps({3, 4}, protocol))) == [3, 4]
        assert sorted(run(pickle.dumps(frozenset([3, 4]), protocol))) == [3, 4]


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"S'a'\n.", "a"),  # texts of Python 2
        (b"T\x01\0\0\0a.", "a"),
        (b"U\x02\xc3\xa4.", "ä"),
        (b"]K\x01a.", [1]),
        (b"K\x01K\x020.", 1),
        (b"K\x01(K\x02K\x031.", 1),
        (b"K\x012\x86.", (1, 1)),
        (b"(K\x01l.", [1]),
        (b"K\x05p0\n0g0\n.", 5),
    ],
)
def test_older_instructions(content: bytes, value: object) -> None:
    assert pickle.loads(content, encoding="utf-8") == run(content) == value


def test_limits_of_a_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is exactly as large as a limit is read."""
    monkeypatch.setattr(restricted_pickle, "MAX_ARGUMENT", 5)
    monkeypatch.setattr(restricted_pickle, "MAX_BITS", 16)
    monkeypatch.setattr(restricted_pickle, "MAX_INSTRUCTIONS", 4)
    assert run(b"X\5\0\0\0abcde.") == "abcde" and run(b"J\xff\xff\0\0.") == 2**16 - 1 and run(b"]]0.") == []
    for content, message in [
        (b"X\6\0\0\0abcdef.", "an argument of 6 bytes"),
        (b"J\0\0\1\0.", "a number of 17 bits"),
        (b"]]]00.", "more than 4 instructions"),
        (b"]", "instruction 1 is invalid or missing"),
        (b"]\xff", "instruction 1 is invalid or missing"),
        (b"]q\x02.", "memo entry 2 at instruction 1"),
    ]:
        with pytest.raises(pickle.UnpicklingError, match=message):
            run(content)
    assert run(b"]q\x01.") == []


def test_reads_as_large_as_the_directory_of_a_zip_file_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_file, "MAX_DIRECTORY", 3)
    file = torch_file._Pieces(io.BytesIO(b"abcdefgh"))
    assert (file.read(3), file.read(None)) == (b"abc", b"defgh")
    with pytest.raises(zipfile.BadZipFile, match="a directory of 4 bytes"):
        file.read(4)


def with_directory(content: bytes, change: Callable[[bytearray, int], None]) -> bytes:
    """A zip file with something else in the last entry of its directory."""
    changed = bytearray(content)
    change(changed, changed.rindex(b"PK\x01\x02"))
    return bytes(changed)


def test_entries_of_a_zip_file_do_not_share_their_bytes(tmp_path: pathlib.Path) -> None:
    """Bytes 42 to 45 of an entry of the directory are its position (APPNOTE 4.3.12): entry 1 gets that of entry 0."""
    state = mapping(w=MATRIX, v=tensor(storage(key="1"), 0, (6,), (1,)))
    content = zipped(state, {"0": SIX.tobytes(), "1": SIX.tobytes()})
    first = content.index(b"PK\x03\x04", content.index(b"byteorder"))
    shared = with_directory(
        content, lambda data, at: data.__setitem__(slice(at + 42, at + 46), struct.pack("<I", first))
    )
    with pytest.raises(PretrainedError, match="its storages '0' and '1' overlap"):
        opened(tmp_path, shared)


def test_a_tensor_has_no_more_elements_than_its_storage(tmp_path: pathlib.Path) -> None:
    """2^40 numbers that are one and the same: 4 TB as soon as they are read."""
    with pytest.raises(PretrainedError, match="more elements than its storage"):
        opened(tmp_path, zip_with(storage(), shape=(2**20, 2**20), strides=(0, 0)))


class Call:
    """Pickles as a call of `function`, as an attacker would."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple:
        return self.reduced


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
@pytest.mark.parametrize(("function", "name"), [(os.system, "posix.system"), (eval, "builtins.eval|__builtin__.eval")])
def test_code_in_a_pickle_is_refused_and_not_run(
    function: Callable, name: str, form: str, protocol: int, tmp_path: pathlib.Path
) -> None:
    proof = tmp_path / "it ran"
    order = f"touch '{proof}'" if function is os.system else f"open({str(proof)!r}, 'w')"
    evil = pickle.dumps({"w": Call(function, order)}, protocol)
    pickle.loads(evil)
    assert proof.exists(), "the pickle would do it"
    proof.unlink()
    content = {"legacy": a_pickle(b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19") + evil, "bare": evil}.get(form)
    if content is None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", evil)
        content = buffer.getvalue()
    with pytest.raises(
        PretrainedError, match=rf"is rejected: its pickle refers to ({name}), which weights do not need"
    ):
        opened(tmp_path, content)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "load"),
        ("torch", "FloatStorage.__class__"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("collections", "OrderedDict.__init__"),
        ("numpy", "dtype"),
        ("torch.nn.modules.linear", "Linear"),
        ("lm_research.interop.restricted_pickle", "load"),
    ],
)
def test_only_the_listed_names_are_allowed(module: str, name: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(PretrainedError, match=f"refers to {module}.{name}"):
        opened(tmp_path, zipped(mapping(w=MATRIX, x=named(module, name)), {"0": SIX.tobytes()}))


@pytest.mark.parametrize(
    "known",
    [
        ("torch", "FloatStorage"),
        ("torch", "float32"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("collections", "OrderedDict"),
    ],
)
@pytest.mark.parametrize("state", [mapping(make=b"N", dtype=b"N"), several(b"N", mapping(make=b"N", dtype=b"N"))])
def test_a_pickle_cannot_change_its_globals(known: tuple[str, str], state: bytes, tmp_path: pathlib.Path) -> None:
    with pytest.raises(PretrainedError, match="it is not a PyTorch file"):
        opened(tmp_path, zipped(mapping(x=named(*known) + state + b"b"), {}))
    assert opened(tmp_path, GOOD_ZIP).read("w").dtype == np.float32


def test_messages_contain_no_terminal_control_codes(tmp_path: pathlib.Path) -> None:
    long = "\x1b[2J" + "x" * 10_000
    for content in (
        zipped(named("torch", long), {}),
        zipped(mapping(**{long: tensor(storage(), 9, (), ())}), {"0": bytes(24)}),
    ):
        with pytest.raises(PretrainedError) as caught:
            opened(tmp_path, content)
        assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 1000
