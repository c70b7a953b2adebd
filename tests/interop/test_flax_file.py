"""The msgpack files of Flax: names and layout become torch's, chunks are joined, damage is named."""

from __future__ import annotations

import pathlib
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization

from lm_research.errors import PretrainedError
from lm_research.interop import flax_file
from lm_research.interop.tensor_files import TensorSource, open_tensors

SIX = np.arange(6, dtype=np.float32).reshape(2, 3)


def opened(directory: pathlib.Path, content: Any) -> TensorSource:
    content = content if isinstance(content, bytes) else serialization.to_bytes(content)
    (directory / "flax_model.msgpack").write_bytes(content)
    return open_tensors(directory)


def extension(shape: Any, dtype: Any, data: Any, kind: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(kind, msgpack.packb((shape, dtype, data), use_bin_type=True))


def test_names_and_layout_match_torch(tmp_path: pathlib.Path) -> None:
    layer = {"query": {"kernel": SIX, "bias": SIX[0]}, "LayerNorm": {"scale": SIX[1], "bias": SIX[1]}}
    tree = {
        "layer": {"0": layer},
        "embed": {"embedding": SIX},
        "norm": {"weight": SIX[0]},
        "conv": {"kernel": SIX.reshape(1, 2, 3)},
    }
    source = opened(tmp_path, tree)
    assert source.format == "flax"
    assert {name: source.read(name).tolist() for name in source.names} == {
        "layer.0.query.weight": SIX.T.tolist(),
        "layer.0.query.bias": SIX[0].tolist(),
        "layer.0.LayerNorm.weight": SIX[1].tolist(),
        "layer.0.LayerNorm.bias": SIX[1].tolist(),
        "embed.weight": SIX.tolist(),
        "norm.weight": SIX[0].tolist(),
        "conv.weight": [SIX.tolist()],
    }
    assert source.shape("layer.0.query.weight") == (3, 2) and source.shape("embed.weight") == (2, 3)
    assert not source.read("embed.weight").flags.owndata and not source.read("embed.weight").flags.writeable


DTYPES = ["bool", "int8", "uint8", "int32", "int64", "float16", "float32", "float64", ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 2), (3,), (300, 300)])
def test_round_trip(dtype: Any, shape: tuple[int, ...], tmp_path: pathlib.Path) -> None:
    array = (np.arange(np.prod(shape, dtype=int)) % 100).reshape(shape).astype(dtype)
    source = opened(tmp_path, {"x": array, "number": 3, "text": "a", "nothing": None, "float": 0.5, "less": -7})
    assert source.names == ["x"]
    found = source.read("x")
    assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, shape, array.tobytes())
    assert (source.dtype("x"), source.shape("x")) == (array.dtype, shape)


def plain(value: Any, data: bytes) -> Any:
    """A value of the walker with its texts in place of their locations."""
    if isinstance(value, flax_file._Span):
        return data[value.offset : value.offset + value.size]
    if isinstance(value, dict):
        return {key: plain(inner, data) for key, inner in value.items()}
    return [plain(inner, data) for inner in value] if isinstance(value, list) else value


NUMBERS = [sign * (2**bits) + more for bits in (5, 7, 8, 15, 16, 31, 32, 63) for sign in (1, -1) for more in (-1, 0, 1)]
VALUES: list[Any] = [
    *(number for number in NUMBERS if -(2**63) <= number < 2**64),
    *(None, False, True, 0, -1, 1.5, 2**64 - 1, {}, [], b""),
    *(size * b"a" for size in (31, 32, 255, 256, 65535, 65536)),
    *([1] * size for size in (15, 16, 65535, 65536)),
    *({str(i): i for i in range(size)} for size in (15, 16, 65536)),
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
@pytest.mark.parametrize("binary", [True, False])
def test_every_form_of_a_value(value: Any, binary: bool, tmp_path: pathlib.Path) -> None:
    """Sizes around those at which msgpack-python chooses the next longer form of the specification; texts as text and as bytes."""
    given = value.decode() if isinstance(value, bytes) and not binary else value
    data = msgpack.packb(given, use_single_float=binary)
    for tail in (b"", b"\x07"):
        walker = flax_file._Walker(tmp_path, np.frombuffer(data + tail, np.uint8), 0, len(data), [70_000 * 2])
        assert plain(walker.value(()), data) == value and walker.position == len(data)


def test_values_are_counted(tmp_path: pathlib.Path) -> None:
    """A list of three is four values."""
    data = np.frombuffer(msgpack.packb([1, 2, 3]), np.uint8)
    assert flax_file._Walker(tmp_path, data, 0, len(data), [4]).value(()) == [1, 2, 3]
    with pytest.raises(PretrainedError, match="values, which no model has"):
        flax_file._Walker(tmp_path, data, 0, len(data), [3]).value(())


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 255, 256, 65536])
def test_every_form_of_an_extension(size: int, tmp_path: pathlib.Path) -> None:
    """Types other than arrays are skipped."""
    content = msgpack.packb(
        {"a": msgpack.ExtType(2, bytes(size)), "b": msgpack.ExtType(1, extension([6], "float32", SIX.tobytes()).data)}
    )
    assert opened(tmp_path, content).names == ["b"]


def test_names_and_nesting_up_to_their_limits(tmp_path: pathlib.Path) -> None:
    """61 maps, an array's list, its shape and a size are 64 levels. A name of 1,000 bytes is a name."""
    tree: Any = {"x": extension([6], "float32", SIX.tobytes())}
    for _ in range(60):
        tree = {"a": tree}
    assert opened(tmp_path, msgpack.packb(tree)).names == [".".join(["a"] * 60 + ["x"])]
    with pytest.raises(PretrainedError, match="nested deeper than 64"):
        opened(tmp_path, msgpack.packb({"a": tree}))
    assert opened(tmp_path, msgpack.packb({"n" * 1000: SIX.tobytes(), "x": extension([6], "float32", SIX.tobytes())}))
    with pytest.raises(PretrainedError, match="has 1001 bytes"):
        opened(tmp_path, msgpack.packb({"n" * 1001: 1}))


def test_arrays_in_chunks(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 8)
    source = opened(tmp_path, {"dense": {"kernel": SIX}, "small": SIX[0, :1]})
    assert b"__msgpack_chunked_array__" in (tmp_path / "flax_model.msgpack").read_bytes()
    assert np.array_equal(source.read("dense.weight"), SIX.T) and source.shape("dense.weight") == (3, 2)
    assert source.read("small").tolist() == [0]


def chunked(**changed: Any) -> bytes:
    halves = [extension([3], "float32", SIX[i].tobytes()) for i in range(2)]
    good = {"shape": {"0": 2, "1": 3}, "chunks": {"0": halves[0], "1": halves[1]}}
    return msgpack.packb({"x": {"__msgpack_chunked_array__": True} | good | changed})


GOOD = serialization.to_bytes({"a": {"x": SIX}})
DAMAGE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "truncated": (GOOD[:-1], "it is truncated"),
    "bytes at the end": (GOOD + b"\0", "it is not one msgpack map"),
    "not a map": (msgpack.packb([1, 2]), "it is not one msgpack map"),
    "no arrays": (msgpack.packb({"a": 1}), "it holds no arrays"),
    "unused code": (b"\x81\xa1a\xc1", "is not msgpack"),
    "enormous length": (b"\x81\xa1a\xc6\xff\xff\xff\xff", "it is truncated"),
    "enormous map": (b"\xdf\xff\xff\xff\xff\xa1a\x01", "it is truncated"),
    "too deep": (b"\x81\xa1a" * 100 + b"\x01", "nested deeper than 64"),
    "deep lists": (b"\x81\xa1a" + b"\x91" * 5000 + b"\x01", "nested deeper than 64"),
    "deep keys": (b"\x81" * 5000, "nested deeper than 64"),
    "number as name": (msgpack.packb({1: 2}), "should end a text"),
    "name not UTF-8": (b"\x81\xa1\xff\x01", "a name is not UTF-8"),
    "duplicate": (b"\x82\xa1a\x01\xa1a\x01", "tensor 'a': the name occurs twice"),
    "shape": (
        msgpack.packb({"a": {"x": extension([2, 2], "float32", SIX.tobytes())}}),
        "tensor 'a/x': shape .* 24 bytes",
    ),
    "dtype": (msgpack.packb({"a": {"x": extension([2, 3], "object", b"")}}), "tensor 'a/x': its dtype 'object'"),
    "negative": (msgpack.packb({"x": extension([-2, -3], "float32", SIX.tobytes())}), "tensor 'x': .* is not a shape"),
    "no bytes": (msgpack.packb({"x": extension([1], "float32", 5)}), "tensor 'x': it is not"),
    "chunk shape": (chunked(shape={"0": 2, "1": 2}), "tensor 'x': its chunks have 6 elements"),
    "chunk of another type": (
        chunked(chunks={"0": extension([3], "int32", bytes(12)), "1": extension([3], "float32", bytes(12))}),
        "tensor 'x': its chunks have 6 elements of int32",
    ),
    "chunk of two axes": (
        chunked(chunks={"0": extension([3], "float32", bytes(12)), "1": extension([1, 3], "float32", bytes(12))}),
        "tensor 'x': its chunks are not",
    ),
    "chunk missing": (chunked(chunks={"1": extension([3], "float32", bytes(12))}), "tensor 'x': its chunks are not"),
    "no chunk shape": (chunked(shape=None), "tensor 'x': .* is not a shape"),
    "two of one name": (
        serialization.to_bytes({"a": {"kernel": SIX, "weight": SIX}}),
        "tensor 'a/weight': it would be called",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(what: str, tmp_path: pathlib.Path) -> None:
    content, message = DAMAGE[what]
    with pytest.raises(PretrainedError, match=message) as caught:
        opened(tmp_path, content)
    assert str(tmp_path / "flax_model.msgpack") in str(caught.value) and "\n" not in str(caught.value)


def test_nested_extensions_are_refused(tmp_path: pathlib.Path) -> None:
    content: Any = 1
    for _ in range(500):
        content = msgpack.ExtType(1, msgpack.packb(content))
    with pytest.raises(PretrainedError, match="nested deeper than 64"):
        opened(tmp_path, msgpack.packb({"x": content}))


def test_no_truncation_goes_unnoticed(tmp_path: pathlib.Path) -> None:
    for size in range(len(GOOD)):
        with pytest.raises(PretrainedError, match="flax_model.msgpack"):
            opened(tmp_path, GOOD[:size])
