"""From the tensors of Hugging Face's files to our arrays, one at a time, and what of the two did not fit."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping
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
from lm_research.trees import flatten


@dataclasses.dataclass(frozen=True)
class Report:
    """What did not fit between a file and a model.

    new: our parameters that the file does not have (freshly initialized). reshaped: those that it has in another
    shape (initialized too). unused: the file's tensors that the model does not have. kept: tensors that no
    computation reads, but that the format has beside one that is read; they are written back as they were. untied: pairs
    of tensors that config.json ties and that differ; both are used. passed_over: the same, where the second is used alone.
    nonfinite: tensors with NaN or infinite values, and how many these are in words; of a run's arrays by our names.
    """

    new: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    kept: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    untied: tuple[tuple[str, str], ...] = ()
    passed_over: tuple[tuple[str, str], ...] = ()
    nonfinite: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def lines(self) -> list[str]:
        """Sentences to log; empty if all fitted."""
        parts = (
            ("initialized, because the files do not have them", self.new),
            ("initialized, because the files have them in another shape", self.reshaped),
            ("not used by this model", self.unused),
            (
                "tied by config.json, but with different values in the files, so that each is used for itself",
                [f"{one} and {other}" for one, other in self.untied],
            ),
            (
                "not used, because another tensor of other values is what is used in its place",
                [f"{one} ({other} is used)" for one, other in self.passed_over],
            ),
            ("with values that are no numbers, so that what it computes is none", listed(self.nonfinite)),
        )
        return [f"{what}: {', '.join(names)}" for what, names in parts if names]


_all_finite = jax.jit(lambda x: jnp.isfinite(x).all())


def nonfinite_in(value: Any) -> str:
    """Describe an array as `3 NaN and 1 infinite of 768`; the empty text if all of it is finite."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return ""
    numpy = jnp if isinstance(value, jax.Array) else np
    if bool(_all_finite(value) if numpy is jnp else np.isfinite(value).all()):
        return ""
    nan, infinite = int(numpy.isnan(value).sum()), int(numpy.isinf(value).sum())
    parts = [f"{count:,} {name}" for count, name in ((nan, "NaN"), (infinite, "infinite")) if count]
    return f"{' and '.join(parts)} of {value.size:,}"


def listed(nonfinite: Mapping[str, str], most: int = 5) -> list[str]:
    """Some of the tensors of `Report.nonfinite`, for a sentence."""
    words = [f"{name} ({count})" for name, count in itertools.islice(nonfinite.items(), most)]
    return words + ([f"{len(nonfinite) - most} more"] if len(nonfinite) > most else [])


class WeightReader:
    """Our arrays out of their tensors."""

    def __init__(self, source: TensorSource, family: Family, definition: ModelDefinition, kind: str) -> None:
        self.source, self.definition = source, definition
        self.names = tied_tables.Names(source, family, definition.arch, definition.head.name, kind)
        self.shapes = flatten(definition.shapes)
        self.weights = weights_of(family, definition)
        self.nonfinite: dict[str, str] = {}  # of the tensors that were read, see Report

    def stored_name(self, path: str, layer: int = 0) -> str | None:
        return next(iter(self.names.stored(self.weights[path], layer)), None)

    def shape_of(self, path: str) -> tuple[int, ...] | None:
        """The stored shape of a parameter, or None if the files do not have it."""
        name = self.stored_name(path) if path in self.weights else None
        return None if name is None else self.source.shape(name)

    def stored_names(self, path: str) -> set[str]:
        """The names of those layers of a parameter that the files have."""
        layers = range(layers_of(path, self.shapes[path].shape)[0])
        return {name for layer in layers if (name := self.stored_name(path, layer)) is not None}

    def check(self, path: str, may_miss: bool, may_differ: bool) -> str:
        """One of `found`, `new` and `reshaped`.

        Raises:
          PretrainedError: a tensor is missing though it may not, has another shape though it may not, or no numbers.
        """
        weight = self.weights[path]
        layers, shape = layers_of(path, self.shapes[path].shape)
        for layer in range(layers):
            name = self.stored_name(path, layer)
            if name is None:
                if not may_miss:
                    missing = self.names.of(weight.of_layer(weight.names[0], layer))[0]
                    names = self.source.names
                    where = self.source.file(names[0]).parent if names else "the directory"
                    raise PretrainedError(
                        f"{where}: the weight files have no tensor {missing!r}, which config.json asks for. They belong to "
                        "another model, or are not complete. Download them again."
                    )
                return "new"
            wanted, got = stored_shape(weight, shape), self.source.shape(name)
            if got != wanted:
                if not may_differ:
                    raise PretrainedError(
                        f"{self.source.file(name)}: tensor {name!r} has shape {got}, but config.json makes it {wanted}. "
                        "They belong to different models."
                    )
                return "reshaped"
            if not jnp.issubdtype(self.source.dtype(name), jnp.floating):
                raise PretrainedError(
                    f"{self.source.file(name)}: tensor {name!r} is of type {self.source.dtype(name)}, but weights are floating-"
                    "point numbers. Quantized files are not supported."
                )
        return "found"

    def read(self, path: str, dtype: np.dtype) -> np.ndarray:
        """A parameter, all layers of it, in memory of its own."""
        shape = self.shapes[path].shape
        layers, part = layers_of(path, shape)
        array = np.empty((layers, *part), dtype)
        for layer in range(layers):
            name = self.names.stored(self.weights[path], layer)[0]
            array[layer] = from_stored(self.weights[path], self.source.read(name), part)
            if found := nonfinite_in(array[layer]):
                self.nonfinite[name] = found
        return array.reshape(shape)

    def check_amount(self, paths: Iterable[str]) -> None:
        """Raises a PretrainedError if parameters take many times the room of the files: their tensors are the same bytes, then."""
        amounts = [(math.prod(self.shapes[path].shape), self.dtype(path).itemsize) for path in paths]
        claimed = sum(size * width for size, width in amounts)
        files = {self.source.file(name) for name in self.source.names}
        held = sum(file.stat().st_size for file in files)
        if claimed > 8 * held + 2**20:  # tied tables are read twice or thrice
            raise PretrainedError(
                f"{sorted(files)[0]}: the weight files hold {held:,} bytes, but the parameters that config.json asks for take {claimed:,} of "
                "them. Many tensors share their bytes, which no model does. Download them again."
            )

    def tied_duplicates(self) -> dict[str, np.ndarray]:
        """Tensors of the files that nothing reads and that belong to the format, by the family's names."""
        dead = [name for weight in self.weights.values() for name in weight.kept]
        found = {name: [one for one in self.names.of(name) if one in self.source.names] for name in dead}
        return {name: np.array(self.source.read(stored[0])) for name, stored in found.items() if stored}

    def others(self, used: set[str]) -> tuple[set[str], tuple[tuple[str, str], ...]]:
        """Tensors that parameters could have been read from but were not: equal ones, and pairs (different one, what was read)."""
        pairs: dict[str, list[str]] = {}
        for read, *others in filter(None, map(self.names.stored, self.weights.values())):
            for other in set(others) - used:
                pairs.setdefault(other, []).append(read)
        same = {
            other for other, reads in pairs.items() if any(tied_tables.equal(self.source, one, other) for one in reads)
        }
        return same, tuple((other, pairs[other][0]) for other in sorted(set(pairs) - same))

    def unread(self, patterns: Iterable[str], names: Iterable[str]) -> dict[str, np.ndarray]:
        """Those of the tensors that fit one of the patterns, by their names with "@" for the model's prefix."""
        found = [name for name in names if any(re.search(pattern, name) for pattern in patterns)]

        def prefix(name: str) -> str:
            return next((p for p in self.names.prefixes if p and name.startswith(p)), "")

        def shown(name: str) -> str:
            return f"@{name.removeprefix(prefix(name))}" if prefix(name) else name

        return {shown(name): np.array(self.source.read(name)) for name in found}

    def dtype(self, path: str) -> np.dtype:
        return self.source.dtype(self.names.stored(self.weights[path])[0])


def weights_of(family: Family, definition: ModelDefinition, more: Iterable[str] = ()) -> dict[str, ParamMapping]:
    """Weights by our path, those of this definition only, and of some more paths."""
    known = tied_tables.weights(family, definition.arch, definition.head.name)
    for path in flatten(definition.shapes):
        layers = definition.layers_of(path)
        if layers is not None and path not in known:  # of a kind of layers, which the family's names do not tell apart
            alike = re.sub(r"^(.*?/layers/)[^/]*/", r"\1", path)
            if alike in known:
                known[path] = dataclasses.replace(known[alike], path=path, layers=layers)
    missing = [path for path in flatten(definition.shapes) if path not in known]
    if missing:
        raise PretrainedError(
            f"The Hugging Face format has no place for {', '.join(missing)} of this family with head {definition.head.name!r}. "
            "Choose another head, or save it as native."
        )
    return {path: known[path] for path in (*flatten(definition.shapes), *more)}


def stored_shape(weight: ParamMapping, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the stored tensor of a parameter (one layer) of this shape."""
    if weight.path.endswith("/kernel"):
        inner, outer = math.prod(shape[: weight.inputs]), math.prod(shape[weight.inputs :]) * weight.parts
        return (outer, inner) if weight.transpose else (inner, outer)
    if weight.path.endswith(("/bias", "/scale")):
        shape = (math.prod(shape) * weight.parts,)
    return (1, *shape) if weight.leading else shape


def from_stored(weight: ParamMapping, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Our parameter (one layer) out of the stored tensor."""
    tensor = tensor.T if weight.transpose else tensor
    if weight.parts > 1:
        tensor = np.split(tensor, weight.parts, axis=-1)[weight.part]
    return tensor.reshape(shape)


def to_stored(weight: ParamMapping, value: np.ndarray) -> np.ndarray:
    """The inverse of `from_stored`; of a tensor in parts, this one."""
    if weight.path.endswith("/kernel"):
        value = value.reshape(math.prod(value.shape[: weight.inputs]), -1)
    elif weight.path.endswith(("/bias", "/scale")):
        value = value.reshape(-1)
    value = value.T if weight.transpose else value
    return value[None] if weight.leading else value


def layers_of(path: str, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """How many layers are stacked in a parameter (1 where none are), and the shape of one."""
    return (shape[0], shape[1:]) if "/layers/" in path else (1, shape)
