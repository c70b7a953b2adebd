"""Conversion of tensors in Hugging Face's files to our arrays, one at a time, and a report of what did not match."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.errors import PretrainedError
from lm_research.interop import tied_tables
from lm_research.interop.tensor_files import TensorSource
from lm_research.models.definition import ModelDefinition
from lm_research.models.families.base import Family
from lm_research.models.families.common import ParamMapping
from lm_research.models.positions import sinusoidal
from lm_research.trees import flatten


@dataclasses.dataclass(frozen=True)
class Report:
    """Differences between weight files and a model.

    Attributes:
      new: parameters that the files do not have, which were initialized.
      reshaped: parameters that the files have in another shape, which were initialized.
      unused: tensors of the files that the model does not have.
      kept: tensors without effect that the format duplicates; they are written back unchanged.
      untied: pairs of tensors that config.json ties but that differ; both are used.
      overridden: pairs of tensors that should be equal but differ; only the second is used.
      nonfinite: tensors with NaN or infinite values -> their number, as text. Arrays of a run have our names.
    """

    new: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    kept: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    untied: tuple[tuple[str, str], ...] = ()
    overridden: tuple[tuple[str, str], ...] = ()
    nonfinite: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def lines(self) -> list[str]:
        """Format the differences as sentences to log; empty if there are none."""
        parts = (
            ("initialized, because the files do not have them", self.new),
            ("initialized, because the files have them in another shape", self.reshaped),
            ("not used by this model", self.unused),
            (
                "tied by config.json, but with different values in the files, so that each is used separately",
                [f"{one} and {other}" for one, other in self.untied],
            ),
            (
                "not used, because another tensor with different values is used in its place",
                [f"{one} ({other} is used)" for one, other in self.overridden],
            ),
            ("with NaN or infinite values, which make the model's outputs invalid", listed(self.nonfinite)),
        )
        return [f"{what}: {', '.join(names)}" for what, names in parts if names]


_all_finite = jax.jit(lambda x: jnp.isfinite(x).all())


def nonfinite_in(value: Any) -> str:
    """Describe an array as `3 NaN and 1 infinite of 768`; "" if all values are finite."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return ""
    numpy = jnp if isinstance(value, jax.Array) else np
    if bool(_all_finite(value) if numpy is jnp else np.isfinite(value).all()):
        return ""
    nan, infinite = int(numpy.isnan(value).sum()), int(numpy.isinf(value).sum())
    parts = [f"{count:,} {name}" for count, name in ((nan, "NaN"), (infinite, "infinite")) if count]
    return f"{' and '.join(parts)} of {value.size:,}"


def listed(nonfinite: Mapping[str, str], limit: int = 5) -> list[str]:
    """Format the first tensors of `Report.nonfinite` for a message."""
    words = [f"{name} ({count})" for name, count in itertools.islice(nonfinite.items(), limit)]
    return words + ([f"{len(nonfinite) - limit} more"] if len(nonfinite) > limit else [])


class WeightReader:
    """Reads parameters of a model from the tensors of Hugging Face's files."""

    def __init__(self, source: TensorSource, family: Family, definition: ModelDefinition, kind: str) -> None:
        self.source, self.family, self.definition = source, family, definition
        self.names = tied_tables.Names(source, family, definition.arch, definition.head.name, kind)
        self.shapes = flatten(definition.shapes)
        self.weights = weights_of(family, definition)
        self.nonfinite: dict[str, str] = {}  # of the tensors read so far, see Report

    def stored_name(self, path: str, layer: int = 0) -> str | None:
        """The name of a parameter's tensor in the files, or None if they do not have it."""
        return next(iter(self.names.stored(self.weights[path], layer)), None)

    def shape_of(self, path: str) -> tuple[int, ...] | None:
        """The stored shape of a parameter, or None if the files do not have it."""
        name = self.stored_name(path) if path in self.weights else None
        return None if name is None else self.source.shape(name)

    def stored_names(self, path: str) -> set[str]:
        """The names of the tensors of all layers of a parameter, as far as the files have them."""
        layers = range(layers_of(self.weights[path], self.shapes[path].shape)[0])
        return {name for layer in layers if (name := self.stored_name(path, layer)) is not None}

    def check(self, path: str, may_miss: bool, may_differ: bool) -> str:
        """Compare a parameter with the files: "found", "new" or "reshaped".

        Args:
          path: of the parameter.
          may_miss: whether the files may lack it ("new").
          may_differ: whether the files may have another shape ("reshaped").

        Raises:
          PretrainedError: a tensor is missing or has another shape, and this is not allowed; or it is not floating-point.
        """
        weight = self.weights[path]
        layers, shape = layers_of(self.weights[path], self.shapes[path].shape)
        for layer in range(layers):
            name = self.stored_name(path, layer)
            if name is None:
                if not may_miss:
                    missing = self.names.of(weight.of_layer(weight.names[0], layer))[0]
                    names = self.source.names
                    where = self.source.file(names[0]).parent if names else "the directory"
                    raise PretrainedError(
                        f"{where}: the weight files have no tensor {missing!r}, which config.json requires. They belong to "
                        "another model, or are incomplete. Download them again."
                    )
                return "new"
            expected, actual = stored_shape(weight, shape), self.source.shape(name)
            if actual != expected:
                if not may_differ:
                    raise PretrainedError(
                        f"{self.source.file(name)}: tensor {name!r} has shape {actual}, but config.json makes it {expected}. "
                        "They belong to different models."
                    )
                return "reshaped"
            if not jnp.issubdtype(self.source.dtype(name), jnp.floating):
                raise PretrainedError(
                    f"{self.source.file(name)}: tensor {name!r} has type {self.source.dtype(name)}, but weights are floating-"
                    "point numbers. Quantized files are not supported."
                )
        return "found"

    def read(self, path: str, dtype: np.dtype) -> np.ndarray:
        """Read all layers of a parameter into a new array."""
        shape = self.shapes[path].shape
        layers, part = layers_of(self.weights[path], shape)
        array = np.empty((layers, *part), dtype)
        for layer in range(layers):
            name = self.names.stored(self.weights[path], layer)[0]
            array[layer] = from_stored(self.weights[path], self.source.read(name), part)
            if found := nonfinite_in(array[layer]):
                self.nonfinite[name] = found
        return array.reshape(shape)

    def check_amount(self, paths: Iterable[str]) -> None:
        """Raise a PretrainedError if parameters are many times larger than the files, whose tensors then overlap."""
        amounts = [(math.prod(self.shapes[path].shape), self.dtype(path).itemsize) for path in paths]
        claimed = sum(size * width for size, width in amounts)
        files = {self.source.file(name) for name in self.source.names}
        held = sum(file.stat().st_size for file in files)
        if claimed > 8 * held + 2**20:  # tied tables are read two or three times
            raise PretrainedError(
                f"{sorted(files)[0]}: the weight files hold {held:,} bytes, but the parameters that config.json describes take {claimed:,}. "
                "Many tensors share their bytes, which is not the case for any model. Download them again."
            )

    def tied_duplicates(self) -> dict[str, np.ndarray]:
        """Tensors of the files that are not used but belong to the format, by the family's names."""
        dead = [name for weight in self.weights.values() for name in weight.kept]
        found = {name: [one for one in self.names.of(name) if one in self.source.names] for name in dead}
        return {name: np.array(self.source.read(stored[0])) for name, stored in found.items() if stored}

    def sinusoids(self) -> dict[str, np.ndarray]:
        """Read the stored tables of sinusoidal positions, by the family's names.

        Raises:
          PretrainedError: a table has other values than the model computes.
        """
        arch, tables = self.definition.arch, {}
        for stack, part in (("encoder", arch.encoder or arch), ("decoder", arch)):
            name = self.family.sinusoids.get(stack, "")
            stored = next((one for one in self.names.of(name) if one in self.source.names), None)
            if stored is None or (stack == "decoder") != part.causal:
                continue
            table = np.array(self.source.read(stored))
            positions_L = jnp.arange(len(table)) + part.position_offset
            expected = np.asarray(sinusoidal(positions_L, part.position_width, part.last_wavelength))
            # The tolerance is that of tables in half precision.
            if table.shape != expected.shape or np.abs(table.astype(np.float32) - expected).max() > 5e-3:
                raise PretrainedError(
                    f"{self.source.file(stored)}: tensor {stored!r} does not have the values of sinusoidal positions, which this family "
                    "computes. Other position tables are not supported for it."
                )
            tables[name] = table
        return tables

    def alternatives(self, used: set[str]) -> tuple[set[str], tuple[tuple[str, str], ...]]:
        """Find unused alternatives to the tensors read: those with equal values, and pairs (different tensor, the one read)."""
        pairs: dict[str, list[str]] = {}
        for read, *others in filter(None, map(self.names.stored, self.weights.values())):
            for other in set(others) - used:
                pairs.setdefault(other, []).append(read)
        same = {
            other for other, reads in pairs.items() if any(tied_tables.equal(self.source, one, other) for one in reads)
        }
        return same, tuple((other, pairs[other][0]) for other in sorted(set(pairs) - same))

    def unread(self, patterns: Iterable[str], names: Iterable[str]) -> dict[str, np.ndarray]:
        """Read the tensors that match one of the patterns, by name with "@" for the model's prefix."""
        found = [name for name in names if any(re.search(pattern, name) for pattern in patterns)]

        def prefix(name: str) -> str:
            return next((p for p in self.names.prefixes if p and name.startswith(p)), "")

        def shown(name: str) -> str:
            return f"@{name.removeprefix(prefix(name))}" if prefix(name) else name

        return {shown(name): np.array(self.source.read(name)) for name in found}

    def dtype(self, path: str) -> np.dtype:
        """The stored dtype of a parameter."""
        return self.source.dtype(self.names.stored(self.weights[path])[0])


def weights_of(family: Family, definition: ModelDefinition, more: Iterable[str] = ()) -> dict[str, ParamMapping]:
    """Return the weights of a definition by our path, and those of the paths in `more`."""
    known = tied_tables.weights(family, definition.arch, definition.head.name)
    for path in flatten(definition.shapes):
        layers = definition.layers_of(path)
        if layers is not None and path not in known:  # a group of layers, which the family's names do not distinguish
            alike = re.sub(r"^(.*?/layers/)[^/]*/", r"\1", path)
            if alike in known:
                known[path] = dataclasses.replace(known[alike], path=path, layers=layers)
    missing = [path for path in flatten(definition.shapes) if path not in known]
    if missing:
        raise PretrainedError(
            f"The Hugging Face format cannot store {', '.join(missing)} of this family with head {definition.head.name!r}. "
            "Choose another head, or save the model as native."
        )
    return {path: known[path] for path in (*flatten(definition.shapes), *more)}


def stored_shape(weight: ParamMapping, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Compute the shape of the stored tensor for a parameter (one layer) of this shape."""
    if weight.path.endswith("/kernel"):
        inner, outer = math.prod(shape[: weight.inputs]), weight.stored_size(math.prod(shape[weight.inputs :]))
        return (outer, inner) if weight.transpose else (inner, outer)
    if weight.path.endswith(("/bias", "/scale")):
        shape = (weight.stored_size(math.prod(shape)),)
    return (1, *shape) if weight.leading else shape


def from_stored(weight: ParamMapping, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Convert a stored tensor to a parameter (one layer)."""
    tensor = tensor.T if weight.transpose else tensor
    if len(weight.parts) > 1:
        outputs = math.prod(shape[weight.inputs :]) if weight.path.endswith("/kernel") else math.prod(shape)
        tensor = tensor[..., weight.columns(outputs)]
    return tensor.reshape(shape)


def to_stored(weights: Sequence[ParamMapping], values: Sequence[np.ndarray]) -> np.ndarray:
    """Make a stored tensor from the parameters (one layer) that are its parts; inverts `from_stored`."""
    matrices = [_as_matrix(*pair) for pair in zip(weights, values, strict=True)]
    tensor, first = matrices[0], weights[0]
    if len(first.parts) > 1:
        width = first.stored_size(tensor.shape[-1])
        tensor = np.zeros((*tensor.shape[:-1], width), tensor.dtype)
        for weight, matrix in zip(weights, matrices, strict=True):
            tensor[..., weight.columns(matrix.shape[-1])] = matrix
    tensor = tensor.T if first.transpose else tensor
    return tensor[None] if first.leading else tensor


def _as_matrix(weight: ParamMapping, value: np.ndarray) -> np.ndarray:
    if weight.path.endswith("/kernel"):
        value = value.reshape(math.prod(value.shape[: weight.inputs]), -1)
    elif weight.path.endswith(("/bias", "/scale")):
        value = value.reshape(-1)
    return value


def layers_of(weight: ParamMapping, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Return the number of tensors that are stacked in a parameter (of layers, and of experts in each), and the shape of one."""
    axes = 1 + weight.by_expert if "/layers/" in weight.path else 0
    return math.prod(shape[:axes]), shape[axes:]
