"""Directories of Hugging Face models: conversion of config.json and weights to and from a ModelDefinition and its parameters.

The format is that of transformers' `save_pretrained` (https://huggingface.co/docs/transformers). tokenizers/loading.py reads
tokenizers.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lm_research.common.disk import write_atomically
from lm_research.common.documents import short
from lm_research.errors import PretrainedError, suggest
from lm_research.interop import (
    gguf_model,
    llama2c,
    model_config,
    module_names,
    peft,
    quantized,
    tied_tables,
    zero_biases,
)
from lm_research.interop.model_config import read_config
from lm_research.interop.tensor_files import Files, TensorSource, open_tensors
from lm_research.interop.tensor_writer import write_tensors
from lm_research.interop.weight_reader import Report, WeightReader, layers_of, stored_shape, to_stored, weights_of
from lm_research.models.architecture import Architecture
from lm_research.models.definition import ModelDefinition, Params, define
from lm_research.models.families import DEFAULT_HEADS, family_of, name_of, stored_as
from lm_research.models.families.base import Family
from lm_research.models.families.common import FIX
from lm_research.models.head_kinds import HEADS
from lm_research.models.heads import HeadSpec
from lm_research.models.limits import invalid_reason
from lm_research.parallel.rules import tree_shardings
from lm_research.tokenizers.loading import holds_tokenizer
from lm_research.trees import flatten, unflatten

STACKS = ("encoder", "decoder", "memory_projection")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Description of a model directory: everything but the parameters.

    Attributes:
      definition: the model, with the requested head.
      family: a key of FAMILIES.
      config: config.json, with the requested head.
      source: its weight files.
      files: the directory.
      tokenizer: the path of the tokenizer: the directory, or a GGUF file that has one.
      untied: pairs of tensors that config.json ties but that have different values.
    """

    definition: ModelDefinition
    family: str
    config: dict[str, Any]
    source: TensorSource
    files: pathlib.Path
    tokenizer: pathlib.Path
    untied: tuple[tuple[str, str], ...] = ()


def inspect(
    directory: pathlib.Path,
    head: str | None = None,
    num_labels: int | None = None,
    adapter: pathlib.Path | None = None,
) -> Pretrained:
    """Read config.json and the headers of the weight files.

    Args:
      directory: the model, or a peft adapter whose base is on this machine.
      head: a key of head_kinds.HEADS; None uses the one of `architectures` in config.json.
      num_labels: number of classes of a classification head; None uses that of config.json.
      adapter: a peft directory whose adapter is added to the weights (interop/peft.py).

    Raises:
      PretrainedError: the directory has no model, or one whose type or settings are not supported.
    """
    model_config.check_num_labels(num_labels)
    if adapter is None and peft.is_adapter(directory):
        adapter, directory = directory, peft.base_of(directory)
    packed, plain = gguf_model.find(directory), llama2c.is_llama2c(directory)
    if packed is not None:
        (config, source), directory = gguf_model.open_gguf(packed), packed.parent
    elif plain:
        (config, source), directory = llama2c.open_llama2c(directory), directory.parent
    else:
        config = read_config(directory)
    try:
        family_name = name_of(config)
    except PretrainedError as error:
        raise model_config.in_file(directory, error) from error
    kind, family = config["model_type"], family_of(family_name).of(config)
    if packed is None and not plain:
        config, files = quantized.open_quantized(directory, config, open_tensors(directory), family.input_first)
        source = _with_stored_names(directory, family, config, files)
    if adapter is not None:
        arch = _architecture(directory, family, config, source)
        ties = tied_tables.members(source, family, arch, DEFAULT_HEADS[arch.kind], kind)
        source = peft.AdaptedSource(source, adapter, family, ties)
        head = head or source.head
    if head == "causal_lm":
        config = {**config, **(family.decoder_config or {})}
    elif head == "masked_lm":
        config = {**config, **(family.encoder_config or {})}
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
        own = [suffix for suffix, other in family.classes.items() if other == head]
        encoder_only = HEADS[head].of_encoder and arch.encoder is not None
        encoder_only &= all(suffix in family.encoder_classes for suffix in own)
    _check_head(name, kind, arch.kind, family, encoder_only)
    arch, untied = tied_tables.fit(source, family, arch, name, kind)
    if untied:
        flags = family.tie_flags
        config |= {key: value for key, value in family.to_hf(arch).items() if key in flags}
    arch = arch.encoder if encoder_only and arch.encoder else arch
    labels = num_labels or model_config.num_labels(config, directory, name)
    if name == "classification":
        config = model_config.with_problem_type(config, labels, changed=num_labels is not None, directory=directory)
    if arch.pooling == "eos" and HEADS[name].pooler == "yes":
        model_config.check_one_end(config, directory)
    spec = HeadSpec(name, labels)
    definition = define(arch, spec)
    reader = WeightReader(source, family, definition, kind)
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
    tokenizer = directory if packed is None or holds_tokenizer(directory) else packed
    return Pretrained(definition, family_name, config, source, directory, tokenizer, untied)


def _architecture(
    directory: pathlib.Path, family: Family, config: Mapping[str, Any], source: TensorSource
) -> Architecture:
    try:
        arch = family.from_hf(config, set(source.names))
        if wrong := invalid_reason(arch, model_config.names_of(family)):
            raise PretrainedError(f"config.json: {wrong}. {FIX}")
    except PretrainedError as error:
        raise model_config.in_file(directory, error) from error
    return arch


def _with_stored_names(directory: pathlib.Path, family: Family, config: Mapping[str, Any], files: Files) -> Files:
    """The files with names of files, if they may have names of transformers' modules."""
    if not family.modules and not any(name.endswith(".experts.down_proj") for name in files.names):
        return files
    arch = _architecture(directory, family, config, files)
    names = tied_tables.Names(files, family, arch, DEFAULT_HEADS[arch.kind], config["model_type"])
    return module_names.with_stored_names(files, family, arch, names.of)


def _named_head(config: Mapping[str, Any], kind: str, family: Family, stacks: str) -> tuple[bool, str]:
    """Return whether the model is only the encoder, and the head's name, according to `architectures`."""
    prefix = family.model_types[kind]
    for name in config.get("architectures") or ():
        # Files of transformers' removed Flax and TensorFlow classes have names with these prefixes.
        suffix = re.sub("^(Flax|TF)", "", str(name)).removeprefix(prefix)
        if suffix in family.classes:
            return suffix in family.encoder_classes, family.classes[suffix]
    if config.get("architectures"):
        known = ", ".join(prefix + suffix for suffix in family.classes)
        raise PretrainedError(
            f"config.json: architectures is {short(config['architectures'])}; of {kind} these are supported: {known}. Choose a "
            f"head with head=..., one of {', '.join(HEADS)}."
        )
    return False, family.head or DEFAULT_HEADS[stacks]


def _check_head(head: str, kind: str, stacks: str, family: Family, encoder_only: bool) -> None:
    """Raise a PretrainedError if a stack of this kind cannot have the head."""
    stacks = "encoder" if encoder_only else stacks
    if stacks != "encoder-decoder" and "masked_lm" in family.classes.values() and head in family.classes.values():
        return  # config.json makes the stack an encoder or a decoder, and either can have any head of the family
    needed = HEADS[head].stack or stacks
    if needed != stacks:
        some = {"encoder": "an encoder", "decoder": "a decoder", "encoder-decoder": "an encoder-decoder"}
        raise PretrainedError(f"head {head!r} needs {some[needed]}, but {kind} is {some[stacks]}.")


def _reader(pretrained: Pretrained) -> WeightReader:
    family, kind = family_of(pretrained.family).of(pretrained.config), pretrained.config["model_type"]
    reader = WeightReader(pretrained.source, family, pretrained.definition, kind)
    if family.tie_flags and not pretrained.untied:
        reader.weights |= tied_tables.own_outputs(reader.weights)
    return reader


def missing_params(pretrained: Pretrained) -> list[str]:
    """List the paths of parameters that the files do not have under any name."""
    reader = _reader(pretrained)
    return [path for path in reader.shapes if reader.shape_of(path) is None]


def load_params(
    pretrained: Pretrained, mesh: Mesh | None = None, dtype: str | None = None, seed: int = 0, fresh_head: bool = False
) -> tuple[Params, Report]:
    """Read the parameters, one at a time, onto the devices of a mesh.

    All headers are checked before any data are read. Host memory holds one stacked parameter at a time, in addition to the
    model if the host is the device.

    Args:
      pretrained: from `inspect`.
      mesh: the devices, sharded by the rules of parallel/rules.py; None uses the default device.
      dtype: type of the parameters; None keeps that of the files.
      seed: seed for parameters that the files do not have.
      fresh_head: initialize parameters of the head whose shape differs from the files, instead of raising an error.

    Raises:
      PretrainedError: a tensor of the stacks is missing, has another shape than config.json implies, or is damaged.
    """
    definition = pretrained.definition
    reader = _reader(pretrained)
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
    kept = {} if pretrained.untied else reader.tied_duplicates()  # without the tie, these tensors have no use
    kept |= reader.sinusoids()
    used |= {stored for name in kept for stored in reader.names.of(name)}
    same, overridden = reader.alternatives(used)
    used |= same | {name for name, _ in overridden}
    rest = [name for name in pretrained.source.names if name not in used]
    kept |= reader.unread(family.unread, rest)
    copies = [re.compile(pattern) for pattern in (*family.redundant, *family.unread)]
    report = Report(
        new=tuple(path for path in new if states[path] == "new"),
        reshaped=tuple(path for path in new if states[path] == "reshaped"),
        unused=tuple(name for name in rest if not any(pattern.search(name) for pattern in copies)),
        kept=kept,
        untied=pretrained.untied,
        overridden=overridden,
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
    """Write config.json and model.safetensors as transformers does.

    Args:
      directory: created if it does not exist.
      definition: the model.
      family: a key of FAMILIES.
      params: its parameters.
      config: the config.json that it was loaded with, whose other keys are kept.
      max_shard_bytes: larger models are split into several files.
      kept: `Report.kept` from loading the model.

    Raises:
      PretrainedError: the format has no class for this family and head.
    """
    head = definition.head
    written = hf_config(definition, family, config)
    module = stored_as(family, definition.arch, written)
    added = zero_biases.missing_biases(module, definition, written)
    shapes, leaves = flatten(definition.shapes) | added, flatten(params) | zero_biases.zeros(added)
    spare = definition.arch.position_offset - module.from_hf(written, set()).position_offset
    for path in (path for path in shapes if spare > 0 and path.endswith("embeddings/positions")):
        leaves[path] = leaves[path][spare:]  # drops rows before the first position, which are unused
        shapes[path] = jax.ShapeDtypeStruct(leaves[path].shape, leaves[path].dtype)
    weights = weights_of(module, definition, added)
    prefix = module.prefix(definition.arch, head.name, written["model_type"])
    entries: dict[str, list[tuple[str, int]]] = {}
    for path, shape in shapes.items():
        weight = weights[path]
        for layer in range(layers_of(weight, shape.shape)[0]):
            back = [name for name in weight.kept if name in (kept or {})]
            for name in dict.fromkeys((weight.names[0], *weight.copies, *back)):
                name = weight.of_layer(name, layer)
                name = prefix + name[1:] if name.startswith("@") else name
                entries.setdefault(name, []).append((path, layer))
    dead = {prefix + name[1:] if name.startswith("@") else name: value for name, value in (kept or {}).items()}
    host = functools.lru_cache(maxsize=4)(lambda path: np.asarray(jax.device_get(leaves[path])))

    def tensor(parts: list[tuple[str, int]]) -> np.ndarray:
        made = []
        for path, layer in parts:
            layers, part = layers_of(weights[path], shapes[path].shape)
            made.append(host(path).reshape(layers, *part)[layer])
        return np.ascontiguousarray(to_stored([weights[path] for path, _ in parts], made))

    def listed() -> Iterator[tuple[str, tuple[int, ...], np.dtype, Any]]:
        for name, parts in entries.items():
            path, _ = parts[0]
            if name in dead and dead[name].dtype == leaves[path].dtype:
                yield name, dead[name].shape, dead[name].dtype, functools.partial(dead.__getitem__, name)
                continue
            shape = stored_shape(weights[path], layers_of(weights[path], shapes[path].shape)[1])
            yield name, shape, np.dtype(leaves[path].dtype), functools.partial(tensor, parts)
        for name in dead.keys() - entries.keys():
            value = dead[name].astype(next(iter(leaves.values())).dtype)
            yield name, value.shape, value.dtype, functools.partial(np.asarray, value)

    directory.mkdir(parents=True, exist_ok=True)  # here, so that its errors are about the path
    write_tensors(directory, listed(), max_shard_bytes)
    write_atomically(directory / "config.json", json.dumps(written, indent=2, sort_keys=True) + "\n")


def hf_config(definition: ModelDefinition, family: str, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Make the config.json of a model, starting from the one it was loaded with, if any.

    Raises:
      PretrainedError: the format has no class for this family and head.
    """
    arch, head = definition.arch, definition.head
    module = stored_as(family, arch, config or {})
    if not module.model_types:
        raise PretrainedError(f"The Hugging Face format has no models of family {family}. Save the model as native.")
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


def with_tokens(
    config: Mapping[str, Any], family: str, arch: Architecture, tokens: Mapping[str, int]
) -> dict[str, Any]:
    """Return a config.json with these ids of special tokens, by key, in place of the family's defaults; with a separator's if it has one.

    In families whose positions start after the padding id (RoBERTa), the position table is resized to keep the number of
    positions. If the new padding id would leave too few rows, or change sinusoidal positions, the default padding id is kept.
    """
    module = stored_as(family, arch, config)
    named = {**config, **{key: token for key, token in tokens.items() if key != "sep_token_id" or key in config}}
    if not module.model_types:
        return named
    before, after = module.from_hf(config, set()), module.from_hf(named, set())
    erased = after.last_wavelength and after.position_offset <= after.pad_id  # a position has the row of padding
    renumbered = before.positions == "sinusoidal" and after.position_offset != before.position_offset
    if after.position_offset > before.position_offset or renumbered or erased:
        named["pad_token_id"] = config["pad_token_id"]
    elif after.max_length != before.max_length:
        named["max_position_embeddings"] += before.max_length - after.max_length
    return named


def _check_stored(arch: Architecture, module: Family, written: Mapping[str, Any]) -> None:
    """Raise a PretrainedError if config.json cannot represent the norm or the scales, which a run can change."""
    again = module.from_hf(written, set())
    again = again.encoder if arch.encoder is None and again.encoder is not None else again

    def fields(arch: Architecture) -> dict[str, Any]:
        spec = arch.layers[0]
        return {"norm": spec.residual, "attention_scale": spec.attention_scale, "logit_scale": arch.logit_scale}

    actual, implied = fields(arch), fields(again)
    for name, key in {"norm": "norm", "attention_scale": "mup_base_width", "logit_scale": "mup_base_width"}.items():
        if actual[name] != implied[name]:
            raise PretrainedError(
                f"The Hugging Face format of {written['model_type']} cannot represent {name}={actual[name]} (it implies "
                f"{implied[name]}), which model.{key} set. Save the model as native."
            )
