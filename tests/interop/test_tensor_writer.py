"""Written weights: exact bytes, shards, nothing partial, nothing stale."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np
import pytest

from lm_research.errors import PretrainedError
from lm_research.interop import tensor_writer
from lm_research.interop.tensor_files import open_tensors, write_tensors
from lm_research.interop.tensor_writer import Tensor

ARRAYS = {
    "float": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bfloat": np.array([[1.5, -2, 3e38]], ml_dtypes.bfloat16),
    "half": np.array([0.1, 65504], np.float16),
    "long": np.array([2**62, -1]),
    "flags": np.array([True, False, True]),
    "none": np.zeros((0, 4), np.float32),
    "scalar": np.array(2.5),
    "float8": np.array([0.5, 448], ml_dtypes.float8_e4m3fn),
    "transposed": np.arange(6, dtype=np.int32).reshape(2, 3).T,
    "big endian": np.arange(3, dtype=">f8"),
    'näme "x"\n': np.zeros(1, np.uint8),
}


def tensors_of(arrays: Mapping[str, np.ndarray]) -> Iterator[Tensor]:
    return ((name, array.shape, array.dtype, lambda array=array: array) for name, array in arrays.items())


def files_in(directory: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def assert_holds(directory: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    source = open_tensors(directory)
    assert set(source.names) == set(arrays)
    for name, array in arrays.items():
        found = source.read(name)
        assert (found.shape, found.dtype) == (
            array.shape,
            array.dtype.newbyteorder("=") if name == "big endian" else array.dtype,
        )
        assert np.array_equal(found, array), name
        assert found.dtype.itemsize == 1 or not found.size or found.ctypes.data % found.dtype.itemsize == 0, "aligned"


def test_round_trip_through_one_file(tmp_path: pathlib.Path) -> None:
    paths = write_tensors(tmp_path / "new/folder", tensors_of(ARRAYS))
    assert paths == [tmp_path / "new/folder/model.safetensors"]
    assert list((tmp_path / "new/folder").iterdir()) == paths
    assert_holds(tmp_path / "new/folder", ARRAYS)


def test_exact_bytes(tmp_path: pathlib.Path) -> None:
    # Wider types first, then by name; the header is padded to 8 bytes. So does the safetensors library.
    arrays = {"b": np.array([1, 2], np.uint8), "c": np.array([[1.0]], "<f4"), "a": np.array(3, np.uint8)}
    header = (
        b'{"__metadata__":{"format":"pt"},"c":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"U8","shape":[],"data_offsets":[4,5]},"b":{"dtype":"U8","shape":[2],"data_offsets":[5,7]}}'
    )
    header += b" " * (-len(header) % 8)
    (path,) = write_tensors(tmp_path, tensors_of(arrays))
    assert path.read_bytes() == len(header).to_bytes(8, "little") + header + b"\0\0\x80\x3f\x03\x01\x02"


def test_same_bytes_as_the_safetensors_library(tmp_path: pathlib.Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    arrays = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in ARRAYS.items() if a.dtype.isnative}
    arrays = {
        name: a for name, a in arrays.items() if a.dtype.isbuiltin == 1
    }  # the library does not support float8 here
    (path,) = write_tensors(tmp_path, tensors_of(arrays))
    assert path.read_bytes() == library.save(arrays, metadata={"format": "pt"})


def test_shards_and_their_index(tmp_path: pathlib.Path) -> None:
    sizes = {"a": 2, "b": 3, "huge": 9, "c": 1, "d": 4, "e": 1}  # four bytes each; at most 20 a file
    arrays = {name: np.full(size, i, np.float32) for i, (name, size) in enumerate(sizes.items())}
    paths = write_tensors(tmp_path, tensors_of(arrays), max_shard_bytes=20)
    names = [f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    assert [path.name for path in paths] == [*names, "model.safetensors.index.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    text = paths[-1].read_text()
    index = json.loads(text)
    # "huge" is written before the shard that was open; huggingface_hub does the same.
    where = {"huge": 0, "a": 1, "b": 1, "c": 2, "d": 2, "e": 3}
    assert index == {"metadata": {"total_size": 80}, "weight_map": {name: names[i] for name, i in where.items()}}
    assert text == json.dumps(index, indent=2, sort_keys=True) + "\n"
    assert_holds(tmp_path, arrays)
    assert open_tensors(tmp_path).file("d") == tmp_path / names[2]


@pytest.mark.parametrize(
    ("sizes", "shards"),
    [
        ("4", ["0"]),
        ("31", ["01"]),
        ("32", ["0", "1"]),
        ("3411", ["0", "1", "23"]),
        ("3521", ["1", "0", "23"]),  # 3 + 2 > 4; the shard that a large tensor gets comes first
        ("1315", ["01", "3", "2"]),
    ],
)
def test_shards_of_at_most_four_bytes(sizes: str, shards: list[str]) -> None:
    """A shard is full before the first tensor that would make it larger, as in huggingface_hub's split_state_dict_into_shards_factory."""
    tensors = tensors_of({str(i): np.zeros(int(size), np.uint8) for i, size in enumerate(sizes)})
    assert ["".join(name for name, *_ in shard) for shard in tensor_writer._shards(list(tensors), 4)] == shards


def test_bytes_are_deterministic_and_only_one_array_is_held_at_a_time(tmp_path: pathlib.Path) -> None:
    alive = 0

    class Counted(np.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def make(array: np.ndarray) -> np.ndarray:
        nonlocal alive
        assert alive == 0
        alive += 1
        counted = np.empty(array.shape, array.dtype).view(Counted)
        counted[...] = array
        return counted

    for folder, order in (("a", list(ARRAYS)), ("b", list(reversed(ARRAYS)))):
        arrays = [(name, ARRAYS[name]) for name in order if ARRAYS[name].ndim]
        write_tensors(tmp_path / folder, [(n, a.shape, a.dtype, lambda a=a: make(a)) for n, a in arrays])
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")


@pytest.mark.parametrize(("before", "after"), [(10**9, 8), (8, 10**9), (8, 16), (8, 8)])
def test_files_of_an_earlier_save_are_removed(before: int, after: int, tmp_path: pathlib.Path) -> None:
    others = {
        "config.json": b"{}",
        "pytorch_model.bin": b"?",
        "my_model.safetensors": b"?",
        "adapter_model.safetensors": b"?",
    }
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".model-00001-of-00009.safetensors.tmp").write_bytes(b"left by a save that was killed")
    old = {f"w{i}": np.full(2, i, np.float32) for i in range(4)}
    new = {name: array + 1 for name, array in old.items()}
    write_tensors(tmp_path, tensors_of(old), max_shard_bytes=before)
    paths = write_tensors(tmp_path, tensors_of(new), max_shard_bytes=after)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths} | set(others)
    assert all((tmp_path / name).read_bytes() == content for name, content in others.items())
    assert_holds(tmp_path, new)


@pytest.mark.parametrize("shard_bytes", [10**9, 8])
def test_a_save_that_fails_leaves_the_earlier_one(shard_bytes: int, tmp_path: pathlib.Path) -> None:
    old = {f"w{i}": np.full(2, i, np.float32) for i in range(3)}
    write_tensors(tmp_path, tensors_of(old), max_shard_bytes=shard_bytes)
    before = files_in(tmp_path)

    def fail() -> np.ndarray:
        raise KeyboardInterrupt

    new = [*tensors_of({"w0": old["w0"] + 1, "w1": old["w1"]}), ("w2", (2,), np.dtype(np.float32), fail)]
    with pytest.raises(KeyboardInterrupt):
        write_tensors(tmp_path, new, max_shard_bytes=shard_bytes)
    assert files_in(tmp_path) == before


def test_what_cannot_be_written_is_reported(tmp_path: pathlib.Path) -> None:
    with pytest.raises(PretrainedError, match=r"Tensor 'z' cannot be saved: safetensors has no dtype complex128"):
        write_tensors(tmp_path, tensors_of({"z": np.zeros(1, np.complex128)}))
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PretrainedError, match=r"cannot be written to .*file: File exists"):
        write_tensors(tmp_path / "file", tensors_of(ARRAYS))


def test_an_array_that_differs_from_its_announcement_is_a_bug(tmp_path: pathlib.Path) -> None:
    for shape, dtype in (((3, 2), np.float32), ((2, 3), np.float16)):
        with pytest.raises(AssertionError, match="float"):
            write_tensors(tmp_path, [("float", shape, np.dtype(dtype), lambda: ARRAYS["float"])])
    assert not list(tmp_path.iterdir()) and math.prod(ARRAYS["float"].shape) == 6
