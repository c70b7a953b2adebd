"""Weights of a Hugging Face model directory in any of their formats, checked when opened and read lazily."""

from __future__ import annotations

import abc
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lm_research.common.documents import read_bytes
from lm_research.common.paths import FILE, FOLDER, NOTHING, kind, stays_inside
from lm_research.errors import PretrainedError
from lm_research.interop import flax_file
from lm_research.interop.flax_file import read_flax
from lm_research.interop.safetensors_file import read_safetensors
from lm_research.interop.tensor_types import MAX_JSON_BYTES, StoredTensor, damaged, parse_json
from lm_research.interop.tensor_writer import write_tensors
from lm_research.interop.torch_file import read_torch

__all__ = ["TensorSource", "open_tensors", "write_tensors"]

# Parts of names that are added by torch.compile, DataParallel and DistributedDataParallel, FSDP, and activation checkpointing.
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# TensorFlow's names for the parameters of a layer norm, in checkpoints from before 2019.
OLD_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
MAX_LISTED = 20


class TensorSource(abc.ABC):
    """The weights in a directory; the data of a tensor are read by `read` only.

    Attributes:
      names: names of the tensors, in PyTorch's convention.
      format: "safetensors", "pytorch", "flax" or "gguf".
    """

    names: list[str]
    format: str

    @abc.abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape in the file."""

    @abc.abstractmethod
    def dtype(self, name: str) -> np.dtype:
        """The dtype in the file: NumPy's, or ml_dtypes' for bfloat16 and float8."""

    @abc.abstractmethod
    def file(self, name: str) -> pathlib.Path:
        """The file that holds the tensor, for messages."""

    @abc.abstractmethod
    def read(self, name: str) -> np.ndarray:
        """Read one tensor: a read-only view of the mapped file if the format allows it."""


class Files(TensorSource):
    """Tensors by name, whose data are in files."""

    def __init__(self, format: str, tensors: dict[str, StoredTensor]) -> None:
        self.format, self.names, self.tensors = format, list(tensors), tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def dtype(self, name: str) -> np.dtype:
        return self.tensors[name].dtype

    def file(self, name: str) -> pathlib.Path:
        return self.tensors[name].path

    def read(self, name: str) -> np.ndarray:
        return self.tensors[name].load()


class _Format(NamedTuple):
    name: str
    file: str
    read: Callable[[pathlib.Path], dict[str, StoredTensor]]
    rename: Callable[[str], str]


FORMATS = (
    _Format("safetensors", "model.safetensors", read_safetensors, str),
    _Format("pytorch", "pytorch_model.bin", read_torch, str),
    _Format("flax", "flax_model.msgpack", read_flax, flax_file.torch_name),
)


def open_file(path: pathlib.Path) -> dict[str, StoredTensor]:
    """Open one weight file, whose suffix determines the format: its tensors by name. Raises like `open_tensors`."""
    format = next(format for format in FORMATS if path.suffix == pathlib.Path(format.file).suffix)
    return _renamed(format, format.read(path))


def open_tensors(directory: pathlib.Path) -> Files:
    """Find the weights of a model directory and check the headers of their files.

    Among several formats the first of FORMATS is used, and a single file is preferred to shards.

    Raises:
      PretrainedError: there are no weights, or they are damaged; the message has the file and the tensor.
    """
    directory = pathlib.Path(directory)
    for format in FORMATS:
        path, index = directory / format.file, directory / f"{format.file}.index.json"
        for file in (path, index):
            if (found := kind(file)) not in (FILE, NOTHING):
                raise damaged(file, f"it is {'a folder' if found == FOLDER else found}")
        if kind(path) == FILE:
            return Files(format.name, _renamed(format, format.read(path)))
        if kind(index) == FILE:
            return Files(format.name, _renamed(format, _read_shards(format, index)))
    raise PretrainedError(_nothing_in(directory))


def _read_shards(format: _Format, index: pathlib.Path) -> dict[str, StoredTensor]:
    """Open the tensors of an index {"weight_map": {tensor: file}}, in its order."""
    content = read_bytes(index, error=PretrainedError, fix="Download it again.", limit=MAX_JSON_BYTES)
    weight_map = parse_json(index, content, "it").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(index, "it has no weight_map")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or {"/", "\\"} & set(shard) or not stays_inside(shard):
            raise damaged(index, f"{shard!r} is not the name of a file next to it", name)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if kind(index.parent / shard) != FILE]
    if missing:
        raise damaged(index, f"of its {len(shards)} files, {len(missing)} are missing: {_some(missing)}")
    found = {shard: format.read(index.parent / shard) for shard in shards}
    for name, shard in weight_map.items():
        if name not in found[shard]:
            raise damaged(index.parent / shard, f"it is missing, although {index.name} lists it", name)
    return {name: found[shard][name] for name, shard in weight_map.items()}


def _renamed(format: _Format, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for stored_name, tensor in tensors.items():
        name = ".".join(part for part in format.rename(stored_name).split(".") if part not in WRAPPERS)
        for old, new in OLD_ENDINGS.items():
            if name == old or name.endswith("." + old):
                name = name.removesuffix(old) + new
        if name in found:
            raise damaged(tensor.path, f"it would be called {name!r}, which another tensor is", stored_name)
        found[name] = tensor
    return found


def _nothing_in(directory: pathlib.Path) -> str:
    looked_for = ", ".join(f"{format.file} (or {format.file}.index.json)" for format in FORMATS)
    if not directory.is_dir():
        return f"{directory} is not a directory. It should be one that holds {looked_for}."
    content = sorted(path.name for path in directory.iterdir())
    return f"No weights found in {directory}: looked for {looked_for}; it holds {_some(content) or 'nothing'}."


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
