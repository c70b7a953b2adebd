"""Read goldens/*.npz and write the checkpoints they describe; NumPy and safetensors only.

A golden holds the results of another implementation, Hugging Face transformers, for one small model; see
goldens/make_goldens.py. Its weights are not stored: both sides make them from their names with `golden_tensor`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import zlib
from collections.abc import Iterator

import numpy as np
import safetensors.numpy

FOLDER = pathlib.Path(__file__).parents[1] / "interop" / "goldens"


@dataclasses.dataclass(frozen=True)
class Golden:
    """One model, its inputs and transformers' outputs."""

    name: str
    kind: str  # the class in transformers, as in "architectures" of config.json
    family: str  # "model_type" of config.json
    what: str  # "outputs": of one forward pass; "losses": of ten AdamW steps; "texts": of generate; "apart": outputs of tied tables that differ
    config: str  # text of config.json
    weights: dict[str, tuple[int, ...]]  # every tensor of model.safetensors by name; a tied one appears once
    inputs: dict[str, np.ndarray]  # keyword arguments of the model; "losses": stacked, one batch a row
    outputs: dict[str, np.ndarray]
    optimizer: dict[str, float]  # "losses" only
    versions: dict[str, str]


def load_golden(path: str | pathlib.Path) -> Golden:
    path = pathlib.Path(path)
    with np.load(path) as file:
        arrays = dict(file)
    groups: dict[str, dict[str, np.ndarray]] = {"inputs": {}, "outputs": {}}
    for key, value in arrays.items():
        group, _, rest = key.partition("/")
        if rest:
            groups[group][rest] = value
    weights = {name: tuple(shape) for name, shape in json.loads(str(arrays["weights"])).items()}
    text = {key: str(arrays[key]) for key in ("kind", "family", "what", "config")}
    other = {key: json.loads(str(arrays[key])) for key in ("optimizer", "versions")}
    return Golden(name=path.stem, weights=weights, **text, **other, **groups)


def golden_paths(what: str, family: str = "") -> Iterator[pathlib.Path]:
    """Files of one kind, in order of their names; those of one `family` if given."""
    for path in sorted(FOLDER.glob("**/*.npz")):
        with np.load(path) as file:
            if str(file["what"]) == what and family in ("", str(file["family"])):
                yield path


def golden_path(name: str) -> pathlib.Path:
    return next(path for path in FOLDER.glob("**/*.npz") if path.stem == name)


def golden_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 values that depend only on the name and shape; RandomState's stream is frozen.

    Norm weights (the only vectors called weight) are around 1, biases around 0, matrices and tables have a standard
    deviation of 0.17: large enough for each to show in the outputs.
    """
    if name.rpartition(".")[2].endswith("bias"):
        middle, reach = 0.0, 0.1
    elif len(shape) == 1:
        middle, reach = 1.0, 0.2
    else:
        middle, reach = 0.0, 0.3
    stream = np.random.RandomState(zlib.crc32(name.encode()))
    values = middle + reach * (2.0 * stream.random_sample(math.prod(shape)) - 1.0)
    return values.astype(np.float32).reshape(shape)


def golden_tensors(golden: Golden) -> dict[str, np.ndarray]:
    return {name: golden_tensor(name, shape) for name, shape in golden.weights.items()}


def write_checkpoint(directory: str | pathlib.Path, golden: Golden) -> None:
    """Write config.json and model.safetensors as transformers would."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(golden.config, encoding="utf-8")
    safetensors.numpy.save_file(golden_tensors(golden), directory / "model.safetensors", metadata={"format": "pt"})
