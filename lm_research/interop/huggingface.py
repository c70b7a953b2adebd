"""Directories of Hugging Face models: config.json and weights, to and from a ModelDefinition and its parameters.

Format: https://huggingface.co/docs/transformers, what `save_pretrained` writes. Tokenizers are tokenizers/loading.py's.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lm_research.common.disk import write_atomically
from lm_research.common.documents import short
from lm_research.errors import PretrainedError, suggest
from lm_research.interop import model_config, peft, quantised, tied_tables, zero_biases
from lm_research.interop.model_config import read_config
from lm_research.interop.tensor_files import TensorSource, open_tensors
from lm_research.interop.tensor_writer import write_tensors
from lm_research.models.architecture import Architecture
from lm_research.models.definition import ModelDefinition, Params, define
from lm_research.models.families import DEFAULT_HEADS, family_of, name_of
from lm_research.models.families.base import Family
from lm_research.models.families.common import FIX, ParamMapping
from lm_research.models.head_kinds import HEADS
from lm_research.models.heads import HeadSpec
from lm_research.models.limits import flaw
from lm_research.parallel.rules import tree_shardings
from lm_research.trees import flatten, unflatten

STACKS = ("encoder", "decoder", "memory_projection")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A directory that has been looked at: everything but the parameters.

    Attributes:
      definition: the model it holds, with the head that was asked for.
      family: a key of FAMILIES.
      config: config.json, with the head that was asked for.
      source: its weight files.
      files: the folder with the tokenizer.
      untied: pairs of tensors that config.json ties, but whose values differ.
    """

    definition: ModelDefinition
    family: str
    config: dict[str, Any]
    source: TensorSource
    files: pathlib.Path
    untied: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """What did not fit between a file and a model.

    new: our parameters that the file does not have (freshly initialised). reshaped: those that it has in another
    shape (initialised too). unused: the file's tensors that the model does not have. kept: tensors that no
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
            ("initialised, because the files do not have them", self.new),
            ("initialised, because the files have them in another shape", self.reshaped),
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
    """ "3 NaN and 1 infinite of 768" of an array, or "" where all of it is finite."""
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


def inspect(
    directory: pathlib.Path,
    head: str | None = None,
    num_labels: int | None = None,
    adapter: pathlib.Path | None = None,
) -> Pretrained:
    """Reads config.json and the headers of the weight files.

    Args:
      directory: of the model, or of a peft adapter whose base is on this machine.
      head: a name of head_kinds.HEADS; None takes the one that `architectures` in config.json names.
      num_labels: classes of a classification; None takes those of config.json.
      adapter: a directory of peft's format whose adapter is added to the weights (interop/peft.py).

    Raises:
      PretrainedError: no model, one of an unknown type, or with settings that are not supported.
    """
    model_config.check_asked(num_labels)
    if adapter is None and peft.is_adapter(directory):
        adapter, directory = directory, peft.base_of(directory)
    config = read_config(directory)
    try:
        family_name = name_of(config)
    except PretrainedError as error:
        raise model_config.in_file(directory, error) from error
    kind, family = config["model_type"], family_of(family_name)
    quantised.check_config(directory / "config.json", config)
    source = open_tensors(directory)
    quantised.check_tensors(directory, {name: source.dtype(name) for name in source.names})
    if adapter is not None:
        arch = _architecture(directory, family, config, source)
        ties = tied_tables.members(source, family, arch, DEFAULT_HEADS[arch.kind])
        source = peft.AdaptedSource(source, adapter, ties)
        head = head or source.head
    if head == "causal_lm":
        config = {**config, **(family.decoder_config or {})}
    arch = _architecture(directory, family, config, source)
    encoder_only = False
    if head is None:
        try:
            encoder_only, name = _named_head(config, kind, family, arch.kind)
        except PretrainedError as error:
            raise model_config.in_file(directory, error) from error
    elif head not in HEADS:
        raise PretrainedError(f"There is no head {head!r}. {suggest(head, HEADS)}")
    else:
        name = head
        encoder_only = HEADS[head].of_encoder and arch.encoder is not None
    _check_head(name, kind, arch.kind, family, encoder_only)
    arch, untied = tied_tables.fit(source, family, arch, name)
    if untied:
        flags = family.tie_flags
        config |= {key: value for key, value in family.to_hf(arch).items() if key in flags}
    arch = arch.encoder if encoder_only and arch.encoder else arch
    labels = num_labels or model_config.num_labels(config, directory, name)
    if name == "classification":
        config = model_config.with_problem_type(config, labels, changed=num_labels is not None, directory=directory)
    spec = HeadSpec(name, labels)
    definition = define(arch, spec)
    reader = _Reader(source, family, definition)
    if name in ("pretraining", "next_sentence"):
        stored = reader.shape_of("next_sentence/bias")
        spec = HeadSpec(name, stored[0] if stored else 2)
    elif adapter is not None and not num_labels and (stored := reader.shape_of("classifier/kernel")):
        spec = HeadSpec(name, stored[0])
    elif name == "none":
        spec = dataclasses.replace(spec, pooled=reader.shape_of("pooler/dense/kernel") is not None)
    definition = definition if spec == definition.head else define(arch, spec)
    if head is not None or num_labels is not None:
        config = hf_config(definition, family_name, config)
    return Pretrained(definition, family_name, config, source, directory, untied)


def _architecture(
    directory: pathlib.Path, family: Family, config: Mapping[str, Any], source: TensorSource
) -> Architecture:
    try:
        arch = family.from_hf(config, set(source.names))
        if wrong := flaw(arch, model_config.names_of(family)):
            raise PretrainedError(f"config.json: {wrong}. {FIX}")
    except PretrainedError as error:
        raise model_config.in_file(directory, error) from error
    return arch


def _named_head(config: Mapping[str, Any], kind: str, family: Family, stacks: str) -> tuple[bool, str]:
    """Whether the model is only the encoder, and the head's name, by `architectures`."""
    prefix = family.model_types[kind]
    for name in config.get("architectures") or ():
        # Files of the removed Flax and TensorFlow classes name those.
        suffix = re.sub("^(Flax|TF)", "", str(name)).removeprefix(prefix)
        if suffix in family.classes:
            return suffix in family.encoder_classes, family.classes[suffix]
    if config.get("architectures"):
        known = ", ".join(prefix + suffix for suffix in family.classes)
        raise PretrainedError(
            f"config.json: architectures is {short(config['architectures'])}; of {kind} these are supported: {known}. Name the "
            f"head you want with head=..., one of {', '.join(HEADS)}."
        )
    return False, family.head or DEFAULT_HEADS[stacks]


def _check_head(head: str, kind: str, stacks: str, family: Family, encoder_only: bool) -> None:
    """Raises a PretrainedError if such a stack cannot carry the head."""
    stacks = "encoder" if encoder_only else stacks
    if stacks != "encoder-decoder" and "masked_lm" in family.classes.values() and head in family.classes.values():
        return  # a stack that is an encoder or a decoder as its files say, with any head
    needed = HEADS[head].stack or stacks
    if needed != stacks:
        some = {"encoder": "an encoder", "decoder": "a decoder", "encoder-decoder": "an encoder-decoder"}
        raise PretrainedError(f"head {head!r} needs {some[needed]}, but {kind} is {some[stacks]}.")


def missing(pretrained: Pretrained) -> list[str]:
    """Our parameters that the files do not have under any name."""
    reader = _Reader(pretrained.source, family_of(pretrained.family), pretrained.definition)
    return [path for path in reader.shapes if reader.shape_of(path) is None]


class _Reader:
    """Our arrays out of their tensors."""

    def __init__(self, source: TensorSource, family: Family, definition: ModelDefinition) -> None:
        self.source, self.definition = source, definition
        self.names = tied_tables.Names(source, family, definition.arch, definition.head.name)
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
        layers = range(_layers(path, self.shapes[path].shape)[0])
        return {name for layer in layers if (name := self.stored_name(path, layer)) is not None}

    def check(self, path: str, may_miss: bool, may_differ: bool) -> str:
        """ "found", "new" or "reshaped".

        Raises:
          PretrainedError: a tensor is missing though it may not, has another shape though it may not, or no numbers.
        """
        weight = self.weights[path]
        layers, shape = _layers(path, self.shapes[path].shape)
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
                    "point numbers. Quantised files are not supported."
                )
        return "found"

    def read(self, path: str, dtype: np.dtype) -> np.ndarray:
        """A parameter, all layers of it, in memory of its own."""
        shape = self.shapes[path].shape
        layers, part = _layers(path, shape)
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

    def dead_copies(self) -> dict[str, np.ndarray]:
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
        prefix = lambda name: next((p for p in self.names.prefixes if p and name.startswith(p)), "")  # noqa: E731
        shown = lambda name: f"@{name.removeprefix(prefix(name))}" if prefix(name) else name  # noqa: E731
        return {shown(name): np.array(self.source.read(name)) for name in found}

    def dtype(self, path: str) -> np.dtype:
        return self.source.dtype(self.names.stored(self.weights[path])[0])


def load_params(
    pretrained: Pretrained, mesh: Mesh | None = None, dtype: str | None = None, seed: int = 0, fresh_head: bool = False
) -> tuple[Params, Report]:
    """Reads the parameters, one at a time, onto the devices of a mesh.

    Everything is checked against the headers before anything is read, so host memory holds the model (where the host
    is the device) and one stacked parameter beside it.

    Args:
      pretrained: from `inspect`.
      mesh: where they go, by the rules of parallel/rules.py; None is the default device.
      dtype: type of the parameters; None keeps each as it is stored.
      seed: of parameters that the files do not have.
      fresh_head: whether parts of the head may have another shape than in the files; they are initialised then.

    Raises:
      PretrainedError: a tensor of the stacks is missing, or any has another shape than config.json asks for, or is
        damaged.
    """
    definition = pretrained.definition
    reader = _Reader(pretrained.source, family_of(pretrained.family), definition)
    states = {}
    for path in reader.shapes:
        of_head = path.split("/")[0] not in STACKS
        states[path] = reader.check(path, may_miss=of_head, may_differ=of_head and fresh_head)
    new = [path for path, state in states.items() if state != "found"]
    reader.check_amount(path for path, state in states.items() if state == "found")
    shardings = {path: None for path in reader.shapes}
    if mesh is not None:
        shardings = flatten(tree_shardings(mesh, definition.shapes, definition.axes))
    arrays = definition.init_only(new, seed, shardings)
    default = np.dtype(dtype) if dtype else None
    for path in reader.shapes:
        if states[path] == "found":
            value = reader.read(path, default or reader.dtype(path))
            arrays[path] = _place(value, shardings[path])
        elif default:
            arrays[path] = arrays[path].astype(default)
    used = set[str]().union(*map(reader.stored_names, reader.shapes))
    family = family_of(pretrained.family)
    kept = {} if pretrained.untied else reader.dead_copies()  # config.json no longer says what they were for
    used |= {stored for name in kept for stored in reader.names.of(name)}
    same, passed_over = reader.others(used)
    used |= same | {name for name, _ in passed_over}
    rest = [name for name in pretrained.source.names if name not in used]
    kept |= reader.unread(family.unread, rest)
    copies = [re.compile(pattern) for pattern in (*family.redundant, *family.unread)]
    report = Report(
        new=tuple(path for path in new if states[path] == "new"),
        reshaped=tuple(path for path in new if states[path] == "reshaped"),
        unused=tuple(name for name in rest if not any(pattern.search(name) for pattern in copies)),
        kept=kept,
        untied=pretrained.untied,
        passed_over=passed_over,
        nonfinite=reader.nonfinite,
    )
    return unflatten(arrays), report


def _place(value: np.ndarray, sharding: Any) -> jax.Array:
    if sharding is None:
        return jnp.array(value)  # a copy: buffers that NumPy owns must not be donated
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def save(
    directory: pathlib.Path,
    definition: ModelDefinition,
    family: str,
    params: Params,
    config: Mapping[str, Any] | None = None,
    max_shard_bytes: int = 5 * 10**9,
    kept: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes config.json and model.safetensors (in shards above a size) as transformers would.

    Args:
      directory: made if it does not exist.
      definition, params: the model.
      family: a key of FAMILIES.
      config: the config.json it was read with, whose other keys are kept.
      max_shard_bytes: size above which weights are divided over several files.
      kept: of the report of reading them.

    Raises:
      PretrainedError: the format has no class for this family and head.
    """
    module = family_of(family)
    head = definition.head
    written = hf_config(definition, family, config)
    added = zero_biases.missing_biases(module, definition, written)
    shapes, leaves = flatten(definition.shapes) | added, flatten(params) | zero_biases.zeros(added)
    spare = definition.arch.position_offset - family_of(family).stored_as.from_hf(written, set()).position_offset
    for path in (path for path in shapes if spare > 0 and path.endswith("embeddings/positions")):
        leaves[path] = leaves[path][spare:]  # rows before the first position, which nothing reads
        shapes[path] = jax.ShapeDtypeStruct(leaves[path].shape, leaves[path].dtype)
    weights = weights_of(module, definition, added)
    prefix = module.prefix(definition.arch, head.name, written["model_type"])
    entries: dict[str, list[tuple[str, int]]] = {}
    for path, shape in shapes.items():
        weight = weights[path]
        for layer in range(_layers(path, shape.shape)[0]):
            back = [name for name in weight.kept if name in (kept or {})]
            for name in dict.fromkeys((weight.names[0], *weight.copies, *back)):
                name = weight.of_layer(name, layer)
                name = prefix + name[1:] if name.startswith("@") else name
                entries.setdefault(name, []).append((path, layer))
    dead = {prefix + name[1:] if name.startswith("@") else name: value for name, value in (kept or {}).items()}
    host = functools.lru_cache(maxsize=4)(lambda path: np.asarray(jax.device_get(leaves[path])))

    def tensor(parts: list[tuple[str, int]]) -> np.ndarray:
        made = []
        for path, layer in sorted(parts, key=lambda part: weights[part[0]].part):
            layers, part = _layers(path, shapes[path].shape)
            made.append(to_stored(weights[path], host(path).reshape(layers, *part)[layer]))
        return np.ascontiguousarray(np.concatenate(made, axis=-1) if len(made) > 1 else made[0])

    def listed() -> Iterator[tuple[str, tuple[int, ...], np.dtype, Any]]:
        for name, parts in entries.items():
            path, _ = parts[0]
            if name in dead and dead[name].dtype == leaves[path].dtype:
                yield name, dead[name].shape, dead[name].dtype, functools.partial(dead.__getitem__, name)
                continue
            shape = stored_shape(weights[path], _layers(path, shapes[path].shape)[1])
            yield name, shape, np.dtype(leaves[path].dtype), functools.partial(tensor, parts)
        for name in dead.keys() - entries.keys():
            value = dead[name].astype(next(iter(leaves.values())).dtype)
            yield name, value.shape, value.dtype, functools.partial(np.asarray, value)

    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory, listed(), max_shard_bytes)
    write_atomically(directory / "config.json", json.dumps(written, indent=2, sort_keys=True) + "\n")


def hf_config(definition: ModelDefinition, family: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """config.json of a model: of the one it was read with, where there is one, what still holds.

    Raises:
      PretrainedError: the format has no class for this family and head.
    """
    arch, head = definition.arch, definition.head
    module = family_of(family).stored_as
    if not module.model_types:
        raise PretrainedError(f"The Hugging Face format has no models of family {family}. Save it as native.")
    written = dict(config) if config else module.to_hf(arch)
    kind = written.setdefault("model_type", next(iter(module.model_types)))
    encoder_only = module.encoder_classes
    fitting = [
        suffix
        for suffix, name in module.classes.items()
        if name == head.name and (suffix in encoder_only) == (bool(encoder_only) and arch.encoder is None)
    ]
    if not fitting:
        raise PretrainedError(
            f"The Hugging Face format has no {kind} model with head {head.name!r} "
            f"(it has: {', '.join(dict.fromkeys(module.classes.values()))}). Load it with one of those heads, or save it as native."
        )
    _check_stored(arch, module, written)
    written["architectures"] = [module.model_types[kind] + fitting[0]]
    if head.kind.named_labels and len(written.get("id2label") or {}) != head.num_labels:
        written["id2label"] = {str(i): f"LABEL_{i}" for i in range(head.num_labels)}
        written["label2id"] = {label: int(i) for i, label in written["id2label"].items()}
    return written


def with_tokens(config: Mapping[str, Any], family: str, tokens: Mapping[str, int]) -> dict[str, Any]:
    """A new config.json with ids of special tokens, by their names in it, in place of the family's own.

    Where positions begin behind the padding token's number, as many of them are left; that token keeps the family's number if
    there are not so many rows before them.
    """
    module = family_of(family).stored_as
    named = {**config, **tokens}
    if not module.model_types:
        return named
    before, after = module.from_hf(config, set()), module.from_hf(named, set())
    if after.position_offset > before.position_offset:
        named["pad_token_id"] = config["pad_token_id"]
    elif after.max_length != before.max_length:
        named["max_position_embeddings"] += before.max_length - after.max_length
    return named


def _check_stored(arch: Architecture, module: Family, written: Mapping[str, Any]) -> None:
    """Raises a PretrainedError if whoever reads this config.json would compute something else: a run can change these fields."""
    again = module.from_hf(written, set())
    again = again.encoder if arch.encoder is None and again.encoder is not None else again
    scored = lambda arch: {"norm": arch.layers[0].residual, "attention_scale": arch.layers[0].attention_scale}  # noqa: E731
    given, meant = (scored(one) | {"logit_scale": one.logit_scale} for one in (arch, again))
    for name, key in {"norm": "norm", "attention_scale": "mup_base_width", "logit_scale": "mup_base_width"}.items():
        if given[name] != meant[name]:
            raise PretrainedError(
                f"The Hugging Face format of {written['model_type']} has no place for {name}={given[name]} (it means "
                f"{meant[name]}), which model.{key} made. Save the model as native."
            )


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


def _layers(path: str, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """How many layers are stacked in a parameter (1 where none are), and the shape of one."""
    return (shape[0], shape[1:]) if "/layers/" in path else (1, shape)
