"""A directory of weights: which files are used, how shards are checked, how old names are mapped."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from flax import serialization

from lm_research.errors import PretrainedError, UserError
from lm_research.interop.tensor_files import TensorSource, open_tensors, write_tensors


def save(path: pathlib.Path, **values: float) -> None:
    """A safetensors file with a float32 [1] for each name."""
    parts = [
        (name, (1,), np.dtype(np.float32), lambda value=value: np.array([value], np.float32))
        for name, value in values.items()
    ]
    (written,) = write_tensors(path.parent / "scratch", parts)
    written.rename(path)
    written.parent.rmdir()


def index(directory: pathlib.Path, weight_map: Any, name: str = "model.safetensors.index.json") -> pathlib.Path:
    (directory / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory / name


def values(source: TensorSource) -> dict[str, float]:
    return {name: source.read(name).item() for name in source.names}


def test_the_first_format_present_is_used(tmp_path: pathlib.Path) -> None:
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.to_bytes({"a": {"scale": np.array([1.0])}}))
    assert (open_tensors(tmp_path).format, values(open_tensors(tmp_path))) == ("flax", {"a.weight": 1})
    index(tmp_path, {}, "pytorch_model.bin.index.json")
    with pytest.raises(PretrainedError, match=r"pytorch_model.bin.index.json cannot be used: it has no weight_map"):
        open_tensors(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"?")
    with pytest.raises(PretrainedError, match=r"pytorch_model.bin cannot be used"):
        open_tensors(tmp_path)
    save(tmp_path / "one.safetensors", a=2)
    index(tmp_path, {"a": "one.safetensors"})
    assert (open_tensors(tmp_path).format, values(open_tensors(tmp_path))) == ("safetensors", {"a": 2})
    save(tmp_path / "model.safetensors", a=3)
    assert values(open_tensors(str(tmp_path))) == {"a": 3}


@pytest.mark.parametrize(
    "name", ["_orig_mod.a.b", "module._orig_mod.a.b", "_orig_mod.module.a.b", "a._orig_mod.b", "a.module.b._orig_mod"]
)
def test_prefixes_of_training_wrappers_are_removed_from_names(name: str, tmp_path: pathlib.Path) -> None:
    """torch.compile puts `_orig_mod.` in front of the names of what it compiles, DataParallel `module.`, and they may be nested."""
    save(tmp_path / "model.safetensors", **{name: 2})
    assert values(open_tensors(tmp_path)) == {"a.b": 2}
    (tmp_path / "model.safetensors").rename(tmp_path / "shard")
    index(tmp_path, {name: "shard"})
    assert values(open_tensors(tmp_path)) == {"a.b": 2}
    save(tmp_path / "shard", **{name: 2, "a.b": 3})
    index(tmp_path, {name: "shard", "a.b": "shard"})
    with pytest.raises(PretrainedError, match="it would be called 'a.b', which another tensor is"):
        open_tensors(tmp_path)


def test_shards_are_read_according_to_the_index(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "one", a=1, b=2, extra=9)
    save(tmp_path / "two", b=3, c=4)
    index(tmp_path, {"c": "two", "b": "two", "a": "one"})
    source = open_tensors(tmp_path)
    assert values(source) == {"c": 4, "b": 3, "a": 1} and source.names == ["c", "b", "a"]
    assert source.file("a") == tmp_path / "one" and source.file("b") == tmp_path / "two"


def test_shards_of_flax(tmp_path: pathlib.Path) -> None:
    for i, tree in enumerate(({"a": {"kernel": np.zeros((2, 3))}}, {"a": {"bias": np.zeros(3)}})):
        (tmp_path / f"{i}.msgpack").write_bytes(serialization.to_bytes(tree))
    index(tmp_path, {"a/kernel": "0.msgpack", "a/bias": "1.msgpack"}, "flax_model.msgpack.index.json")
    source = open_tensors(tmp_path)
    assert {name: source.shape(name) for name in source.names} == {"a.weight": (3, 2), "a.bias": (3,)}


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (
            {"a": "one", "b": "two", "c": "three"},
            "index.json cannot be used: of its 3 files, 2 are missing: three, two",
        ),
        ({"a": "one", "z": "one"}, "one cannot be used: tensor 'z': it is missing, although model"),
        ({"a": "../one"}, "tensor 'a': '../one' is not the name of a file next to it"),
        ({"a": "/etc/passwd"}, "tensor 'a': '/etc/passwd' is not the name"),
        ({"a": ".."}, r"tensor 'a': '\.\.' is not the name"),
        ({"a": "one\0"}, "tensor 'a': .* is not the name"),
        ({"a": 3}, "tensor 'a': 3 is not the name"),
        ({"a": "x" * 300}, "of its 1 files, 1 are missing"),  # a name may have 255 bytes
        (["a"], "it has no weight_map"),
        ({}, "it has no weight_map"),
    ],
)
def test_damaged_indices_are_named(weight_map: Any, message: str, tmp_path: pathlib.Path) -> None:
    save(tmp_path / "one", a=1)
    index(tmp_path, weight_map)
    with pytest.raises(PretrainedError, match=message) as caught:
        open_tensors(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "it is not JSON"),
        (b"[]", "it is not a JSON object"),
        (b"{}", "it has no weight_map"),
        (b'{"weight_map": {"a": "one", "a": "two"}}', "the name 'a' occurs twice"),
    ],
)
def test_an_invalid_index(text: bytes, message: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(text)
    with pytest.raises(PretrainedError, match=message):
        open_tensors(tmp_path)


def test_a_damaged_shard_is_named(tmp_path: pathlib.Path) -> None:
    save(tmp_path / "one", a=1)
    (tmp_path / "one").write_bytes((tmp_path / "one").read_bytes()[:-1])
    index(tmp_path, {"a": "one"})
    with pytest.raises(PretrainedError, match=r"one cannot be used: tensor 'a': its data end at byte 4, but"):
        open_tensors(tmp_path)


def test_old_names_of_layer_norms(tmp_path: pathlib.Path) -> None:
    names = {"x.LayerNorm.gamma": 1, "x.LayerNorm.beta": 2, "LayerNorm.gamma": 3, "y.gamma": 4, "zLayerNorm.beta": 5}
    save(tmp_path / "model.safetensors", **names)
    expected = {
        "x.LayerNorm.weight": 1,
        "x.LayerNorm.bias": 2,
        "LayerNorm.weight": 3,
        "y.gamma": 4,
        "zLayerNorm.beta": 5,
    }
    assert values(open_tensors(tmp_path)) == expected
    save(tmp_path / "model.safetensors", **{"LayerNorm.gamma": 1, "LayerNorm.weight": 1})
    with pytest.raises(PretrainedError, match=r"tensor '.*': it would be called 'LayerNorm.weight', which another"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_dangling_link_is_not_ignored(name: str, tmp_path: pathlib.Path) -> None:
    save(tmp_path / "pytorch_model.bin", a=1)
    (tmp_path / name).symlink_to(tmp_path / "removed")
    with pytest.raises(PretrainedError, match=f"{name} cannot be used: it is a link to nothing"):
        open_tensors(tmp_path)


def test_no_weights_at_all(tmp_path: pathlib.Path) -> None:
    with pytest.raises(PretrainedError, match="it holds nothing"):
        open_tensors(tmp_path)
    for i in range(25):
        (tmp_path / f"file{i:02}").touch()
    with pytest.raises(PretrainedError) as caught:
        open_tensors(tmp_path)
    message = str(caught.value)
    for name in ("model.safetensors", "pytorch_model.bin", "flax_model.msgpack"):
        assert f"{name} (or {name}.index.json)" in message
    assert (
        "file00, file01" in message and message.endswith("file19 and 5 more.") and isinstance(caught.value, UserError)
    )
    with pytest.raises(PretrainedError, match="is not a directory"):
        open_tensors(tmp_path / "elsewhere")
