"""The safetensors format: every kind of damage is named and refused before anything is read."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest

from lm_research.errors import PretrainedError
from lm_research.interop.safetensors_file import DTYPES
from lm_research.interop.tensor_files import open_tensors


def a_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, shape: list | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def test_reads_views_of_the_mapped_file(tmp_path: pathlib.Path) -> None:
    # Data may be in another order than names, and at unaligned addresses.
    header = {
        "__metadata__": {"format": "pt"},
        "late": entry(3, 27, [2, 3]),
        "early": entry(0, 3, [3], "U8"),
        "no": entry(27, 27, [0, 5]),
    }
    values = np.arange(6, dtype="<f4")
    (tmp_path / "model.safetensors").write_bytes(a_file(header, b"abc" + values.tobytes()))
    source = open_tensors(tmp_path)
    assert (source.format, source.names) == ("safetensors", ["late", "early", "no"])
    late = source.read("late")
    assert np.array_equal(late, values.reshape(2, 3)) and late.dtype == source.dtype("late") == np.float32
    assert not late.flags.owndata and not late.flags.writeable and np.shares_memory(late, source.read("late"))
    assert source.read("early").tobytes() == b"abc" and source.read("no").shape == source.shape("no") == (0, 5)


@pytest.mark.parametrize("code", DTYPES)
def test_every_dtype(code: str, tmp_path: pathlib.Path) -> None:
    data = bytes([0, 1] * DTYPES[code].itemsize)
    (tmp_path / "model.safetensors").write_bytes(a_file({"x": entry(0, len(data), [2], code)}, data))
    array = open_tensors(tmp_path).read("x")
    assert (array.dtype, array.shape, array.tobytes()) == (DTYPES[code], (2,), data)


A = {"a": entry(0, 8)}
DAMAGE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "seven bytes": (b"\0" * 7, "it has 7 bytes, too few"),
    "header beyond the file": (
        a_file(A, length=2**40),
        "its header should have 1099511627776 bytes, but only 61 follow",
    ),
    "truncated header": (a_file(A)[:-10], "its header should have 61 bytes, but only 51 follow"),
    "not JSON": (a_file(b"{'a': 1}"), "its header is not JSON"),
    "not UTF-8": (a_file(b'{"\xff": 1}'), "its header is not JSON"),
    "too deep": (a_file(b"[" * 100_000), "its header is not JSON"),
    "a list": (a_file([1]), "its header is not a JSON object"),
    "truncated data": (a_file(A, b"\0" * 7), "tensor 'a': its data end at byte 8, but the file has 7 bytes"),
    "bytes at the end": (a_file(A, b"\0" * 9), "the last 1 bytes belong to no tensor"),
    "hole": (a_file({"a": entry(0, 4), "b": entry(8, 12)}, b"\0" * 12), "tensor 'b': 4 bytes before its data belong"),
    "overlap": (a_file({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12), "tensor 'b': its data overlap .* 'a'"),
    "same place": (a_file({"a": entry(0, 8), "b": entry(0, 8)}, b"\0" * 8), "tensor 'b': its data overlap .* 'a'"),
    "backwards": (a_file({"a": entry(8, 0, [0])}, b"\0" * 8), "tensor 'a': its data_offsets are not"),
    "negative offset": (a_file({"a": entry(-8, 0, [2])}, b"\0" * 8), "tensor 'a': its data_offsets are not"),
    "one offset": (a_file({"a": A["a"] | {"data_offsets": [8]}}, b"\0" * 8), "tensor 'a': its data_offsets are not"),
    "other shape": (
        a_file({"a": entry(0, 8, [3])}, b"\0" * 8),
        r"tensor 'a': shape \(3,\) of F32 takes 12 bytes, not 8",
    ),
    "fractional shape": (a_file({"a": entry(0, 8, [2.0])}, b"\0" * 8), "tensor 'a': .* is not a shape"),
    "boolean shape": (a_file({"a": entry(0, 4, [True])}, b"\0" * 4), "tensor 'a': .* is not a shape"),
    "negative shape": (a_file({"a": entry(0, 8, [-1, -2])}, b"\0" * 8), "tensor 'a': .* is not a shape"),
    "rank 33": (a_file({"a": entry(0, 4, [1] * 33)}, b"\0" * 4), "tensor 'a': .* is not a shape"),
    "empty and enormous": (a_file({"a": entry(0, 0, [0, 2**62])}), "tensor 'a': .* too large for any machine"),
    "dtype": (a_file({"a": entry(0, 8, [2], "F31")}, b"\0" * 8), "tensor 'a': its dtype 'F31' is not known"),
    "dtype of another kind": (
        a_file({"a": A["a"] | {"dtype": [1]}}, b"\0" * 8),
        "tensor 'a': its dtype .* is not known",
    ),
    "no shape": (
        a_file({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, b"\0" * 8),
        "tensor 'a': its entry in the header",
    ),
    "duplicate": (a_file(b'{"a": 1, "a": 2}'), "the name 'a' occurs twice"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.* Run `git lfs pull`"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(what: str, tmp_path: pathlib.Path) -> None:
    content, message = DAMAGE[what]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(PretrainedError, match=message) as caught:
        open_tensors(tmp_path)
    assert str(tmp_path / "model.safetensors") in str(caught.value) and "\n" not in str(caught.value)


def test_no_truncation_goes_unnoticed(tmp_path: pathlib.Path) -> None:
    whole = a_file(A, b"\0" * 8)
    for size in range(len(whole)):
        (tmp_path / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(PretrainedError, match=re.escape(str(tmp_path / "model.safetensors"))):
            open_tensors(tmp_path)


def test_a_header_has_a_limit(tmp_path: pathlib.Path) -> None:
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write((33_554_433).to_bytes(8, "little"))
        file.truncate(8 + 33_554_433)  # sparse: takes no space
    with pytest.raises(PretrainedError, match="33554432 is the most"):
        open_tensors(tmp_path)
