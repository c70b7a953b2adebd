"""Our own model directories, and run directories read as such.

A native directory holds `model.json` (family, architecture, head, digests of arrays, and what config.json of the
Hugging Face format says about it), `params/` (an Orbax checkpoint of plain nested dicts), and the tokenizer's files. A
run directory (run/run_directory.py) holds the same things in other places, and is read as one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any, Required, TypedDict

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, SingleDeviceSharding

from lm_research.common.disk import format_size, unwrapping_os_errors, write_atomically
from lm_research.common.documents import Count, Object, check, check_fields, read_json
from lm_research.common.paths import odd_file
from lm_research.config import resolve
from lm_research.config.run_files import checkpoint_steps, newest_step, read_config
from lm_research.config.variants import import_plugins
from lm_research.errors import CheckpointError, ConfigError, PretrainedError, suggest
from lm_research.interop.huggingface import hf_config, with_tokens
from lm_research.interop.model_config import check_config, check_num_labels
from lm_research.interop.orbax_noise import silence_duplicate_errors
from lm_research.interop.weight_reader import Report, nonfinite_in
from lm_research.models import adapters
from lm_research.models.architecture import Architecture
from lm_research.models.definition import ModelDefinition, Params, define
from lm_research.models.digest import digest_arrays
from lm_research.models.families import family_of
from lm_research.models.head_kinds import HEADS
from lm_research.models.heads import HeadSpec
from lm_research.models.layer_spec import nested
from lm_research.models.limits import Depth, flaw, head_flaw
from lm_research.parallel.rules import tree_shardings
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.run_tokenizer import format_for, roles_for, with_format
from lm_research.trees import flatten, unflatten

MODEL, PARAMS = "model.json", "params"
silence_duplicate_errors()
_FIX = "Restore it from a copy, or make the directory again."


class _Model(TypedDict, total=False):
    """model.json."""

    family: Required[str]
    architecture: Required[Object]
    head: Required[HeadSpec]
    config: Required[Object]
    lora: Object
    plugins: list[str]


class _Described(TypedDict):
    """Of model.json, what `_with_layers` has looked at."""

    architecture: Required[Architecture]


class _NativeModel(_Model):
    digests: Required[dict[str, str]]


class _Manifest(TypedDict):
    """Of a checkpoint's manifest.json, what is read here."""

    digests: dict[str, str]
    files: dict[str, str]


# Orbax warns of a file of its own that a part of a checkpoint never has, and of arrays that `_restore` finds missing.
_ECHOES = ("Metadata file does not exist", "Failed to get item metadata")
logging.getLogger("absl").addFilter(lambda record: not record.getMessage().startswith(_ECHOES))


@dataclasses.dataclass(frozen=True)
class Native:
    """A directory that has been looked at: everything but the parameters.

    Attributes:
      definition: the model, with the head that was asked for; `stored`: the one in the directory, with its adapters if it has any.
      family: a key of FAMILIES.
      config: config.json of the Hugging Face format, as far as it has a place for this model.
      arrays: the Orbax directory; `subtree`: the name the parameters have in it, or "".
      digests: of the arrays, by path.
      files: the folder with the tokenizer.
      objective: name of the one that a run was pre-trained with; "" for a task, or where nothing tells.
      plugins: modules that were imported before the family was looked up, as the config key `plugins` names them.
    """

    definition: ModelDefinition
    stored: ModelDefinition
    family: str
    config: dict[str, Any]
    arrays: pathlib.Path
    subtree: str
    digests: dict[str, str]
    files: pathlib.Path
    objective: str = ""
    plugins: tuple[str, ...] = ()


def is_native(directory: pathlib.Path) -> bool:
    return (directory / MODEL).is_file()


def is_run(directory: pathlib.Path) -> bool:
    """Whether it is the directory of a training run, or of one of its checkpoints."""
    run = (directory / "checkpoints").is_dir() and (directory / "config.json").is_file()
    if run or (directory / "files" / "manifest.json").is_file():
        return True
    of_run = directory.parent.name == "checkpoints" and (directory.parent.parent / "config.json").is_file()
    return of_run and directory.name.isdecimal() and not (directory / "config.json").exists()  # a damaged one


def save(
    directory: pathlib.Path,
    definition: ModelDefinition,
    family: str,
    params: Params,
    config: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
    plugins: Iterable[str] = (),
) -> None:
    """Write a native directory; model.json comes last, so a directory without it is not complete.

    Whoever reads it imports the modules `plugins` first, which may have the family.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MODEL).unlink(missing_ok=True)
    shutil.rmtree(directory / PARAMS, ignore_errors=True)
    needed = format_size(sum(x.nbytes for x in jax.tree.leaves(params)))
    with (
        unwrapping_os_errors(directory, lambda: f"The parameters take about {needed}."),
        ocp.StandardCheckpointer() as checkpointer,
    ):
        checkpointer.save((directory / PARAMS).absolute(), params)
    if tokenizer is not None:
        tokenizer.save_files(directory)
    content = describe(definition, family, config) | {"plugins": list(plugins), "digests": digest_arrays(params)}
    write_atomically(directory / MODEL, json.dumps(content, indent=1) + "\n")


def describe(
    definition: ModelDefinition,
    family: str,
    config: Mapping[str, Any] | None = None,
    tokens: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """What model.json says about a model.

    Args:
      definition, family: the model.
      config: its config.json in the Hugging Face format; None makes one, as far as that format has a place for it.
      tokens: ids of special tokens by their names in a config.json that is made.
    """
    if config is None:
        config = with_tokens(_config(definition, family, {}), family, tokens or {})
    lora = {"lora": dataclasses.asdict(definition.lora)} if isinstance(definition, adapters.AdaptedDefinition) else {}
    return lora | {
        "family": family,
        "architecture": dataclasses.asdict(definition.arch),
        "head": dataclasses.asdict(definition.head),
        "config": dict(config),
    }


def inspect(directory: pathlib.Path, head: str | None = None, num_labels: int | None = None) -> Native:
    """Reads what a native or a run directory says about its model.

    Raises:
      PretrainedError: it is damaged, or there is no such head.
    """
    check_num_labels(num_labels)
    read = _inspect_native if is_native(directory) else _inspect_run
    try:
        found = read(directory)
    except (OSError, ValueError, TypeError, KeyError, ConfigError, CheckpointError, PretrainedError) as error:
        raise PretrainedError(
            f"The model directory {directory} cannot be read: {error}{_way_out(directory)}"
        ) from error
    if head is None and num_labels is None:
        return found
    if head is not None and head not in HEADS:
        raise PretrainedError(f"There is no head {head!r}. {suggest(head, HEADS)}")
    spec = found.stored.head
    spec = dataclasses.replace(spec, name=head or spec.name, num_labels=num_labels or spec.num_labels)
    if spec.name == "none":
        spec = dataclasses.replace(spec, pooled="pooler" in found.stored.shapes)
    definition = define(found.stored.arch, spec)
    return dataclasses.replace(found, definition=definition, config=_config(definition, found.family, found.config))


def _inspect_native(directory: pathlib.Path) -> Native:
    content = read_json(directory / MODEL, _NativeModel, error=PretrainedError, fix=_FIX)
    plugins = tuple(content.get("plugins", ()))
    import_plugins(plugins, where=f"{directory / MODEL}: plugins")
    definition, arrays = _definition(content, directory / MODEL), directory / PARAMS
    _check_files(arrays)
    stored = content["family"], content["config"], arrays, "", content["digests"]
    return Native(definition, definition, *stored, directory, plugins=plugins)


def _inspect_run(directory: pathlib.Path) -> Native:
    step = directory
    if (directory / "checkpoints").is_dir():
        newest = newest_step(directory / "checkpoints")
        if newest is None:
            raise ValueError("the run has not saved a checkpoint yet")
        step = directory / "checkpoints" / str(newest)
    _check_files(step)
    manifest = read_json(step / "files" / "manifest.json", _Manifest, error=PretrainedError, fix=_FIX)
    for name, digest in manifest["files"].items():
        path = step / "files" / name
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise ValueError(f"checkpoint {step.name} is damaged: files/{name} is not what was written")
    subtree = "ema" if any(path.startswith("ema/") for path in manifest["digests"]) else "params"
    prefix = f"{subtree}/"
    digests = {path.removeprefix(prefix): d for path, d in manifest["digests"].items() if path.startswith(prefix)}
    if not (step / "files" / MODEL).is_file():  # nor does config.json tell the shapes and the head for sure
        raise ValueError(
            f"checkpoint {step.name} has no {MODEL}, which says what the model is and predicts. Training writes it into every "
            "checkpoint: copy it from another checkpoint of this run, or go on with the run until it saves the next one."
        )
    run = read_config(step / "files" / "config.json", PretrainedError)  # first: its plug-ins may have the family
    stored = read_json(step / "files" / MODEL, _Model, error=PretrainedError, fix=_FIX)
    definition = _definition(stored, step / "files" / MODEL)
    adapted = adapters.adapt(definition, resolve({"lora": stored.get("lora", {})}).lora)
    return Native(
        definition,
        adapted,
        stored["family"],
        stored["config"],
        step / "state",
        subtree,
        digests,
        step / "files",
        "" if run["task"] else run["objective"]["name"],
        tuple(run["plugins"]),
    )


def _check_files(folder: pathlib.Path) -> None:
    if odd := odd_file(folder):  # Orbax would wait for a pipe
        raise ValueError(odd)


def _definition(content: _Model, path: pathlib.Path) -> ModelDefinition:
    """The model of a model.json; raises a PretrainedError for one that cannot be."""
    family_of(content["family"])
    check_config(content["config"], f"{path}: config")
    described = {"architecture": _with_layers(content["architecture"], f"{path}: architecture")}
    arch = check(described, _Described, str(path), error=PretrainedError, fix=_FIX)["architecture"]
    if wrong := flaw(arch) or head_flaw(content["head"]):
        raise PretrainedError(f"{path}: {wrong}. {_FIX}")
    try:
        return define(arch, content["head"])
    except Exception as error:  # of numbers that do not fit each other, raised by whatever meets them first
        raise PretrainedError(f"{path} describes no model ({type(error).__name__}: {error}). {_FIX}") from error


def _with_layers(architecture: Mapping[str, Any], where: str) -> dict[str, Any]:
    """An architecture as it is written now, from one of files in which fields of all layers stood beside those of the stack."""
    counts = {"num_layers": Depth, "window": Count, "window_from": Count}
    check_fields(architecture, counts, where, error=PretrainedError, fix=_FIX)
    named = dict(architecture)
    if "attention" in named:  # its earlier name
        backend = named.pop("attention")
        named["attention_backend"] = "xla" if backend == "plain" else backend
    found = named if "layers" in named else nested(named)
    if isinstance(found.get("encoder"), Mapping):
        found["encoder"] = _with_layers(found["encoder"], f"{where}.encoder")
    return found


def _config(definition: ModelDefinition, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the other format, or what is known of it where it has no place for the model."""
    try:
        return hf_config(definition, family, config)
    except PretrainedError:
        return {**family_of(family).to_hf(definition.arch), **config}


def tokenizer_of(tokenizer: Tokenizer, arch: Architecture, head: str, objective: str = "") -> Tokenizer:
    """A run's tokenizer as a model with this head has learned to read with it; `objective` is Native's."""
    form, reader = format_for(arch.kind, head, objective), arch.encoder or arch
    return with_format(tokenizer, form, types=reader.num_types > 1, max_length=reader.max_length or None)


def tokens_of(tokenizer: Tokenizer, arch: Architecture, head: str, objective: str = "") -> dict[str, int]:
    """Ids of the special tokens of `tokenizer_of`'s, by their names in config.json."""
    roles = roles_for(tokenizer, format_for(arch.kind, head, objective))
    return {f"{role}_token_id": roles[role] for role in ("pad", "bos", "eos") if role in roles}


def missing_params(native: Native) -> list[str]:
    """Parameters of the model that the directory does not have."""
    stored = flatten(native.stored.shapes)
    return [path for path in flatten(native.definition.shapes) if path not in stored]


def load_params(
    native: Native, mesh: Mesh | None = None, dtype: str | None = None, seed: int = 0
) -> tuple[Params, Report]:
    """Reads the parameters onto the devices of a mesh; those that the directory does not have are initialized.

    Adapters are added to their kernels.

    Raises:
      PretrainedError: they cannot be read, or are not what was written.
    """
    wanted, stored = flatten(native.definition.shapes), flatten(native.stored.shapes)
    common = [path for path, leaf in wanted.items() if path in stored and stored[path].shape == leaf.shape]
    parts = [path for path in stored if adapters.is_adapter(path) and f"{path.rpartition('/')[0]}/kernel" in common]
    shardings = dict.fromkeys([*wanted, *parts], SingleDeviceSharding(jax.devices()[0]))
    if mesh is not None:
        shardings = flatten(tree_shardings(mesh, native.definition.shapes, native.definition.axes))
        shardings |= flatten(tree_shardings(mesh, native.stored.shapes, native.stored.axes))
    arrays = _read(native, [*common, *parts], shardings)
    nonfinite = {path: found for path, x in arrays.items() if (found := nonfinite_in(x))}
    arrays = flatten(adapters.merged(native.stored, unflatten(arrays))[1])
    new = [path for path in wanted if path not in arrays]
    arrays |= native.definition.init_only(new, seed, shardings)
    if dtype:
        arrays = {path: x.astype(dtype) for path, x in arrays.items()}
    unused = tuple(path for path in stored if path not in {*common, *parts})
    report = Report(new=tuple(new), unused=unused, nonfinite=nonfinite)
    return unflatten({path: arrays[path] for path in wanted}), report


def load_adapted(native: Native) -> Params:
    """All parameters of a run with adapters, these by themselves, on the default device; raises like `load_params`."""
    paths = list(flatten(native.stored.shapes))
    return unflatten(_read(native, paths, dict.fromkeys(paths, SingleDeviceSharding(jax.devices()[0]))))


def _read(native: Native, paths: list[str], shardings: Mapping[str, Any]) -> dict[str, Any]:
    """These arrays, checked against their digests."""
    try:
        arrays = _restore(native, paths, shardings)
    except Exception as error:  # Orbax raises many kinds for missing files, truncated data and other shapes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise PretrainedError(
            f"The parameters in {native.arrays} cannot be read ({reason}).{_way_out(native.files.parent)}"
        ) from error
    found = digest_arrays(unflatten(arrays))
    for path in paths:
        if found[path] != native.digests.get(path):
            raise PretrainedError(
                f"{native.arrays}: array {path} is damaged: its digest is {found[path]}, but {native.digests.get(path)} was written."
                + _way_out(native.files.parent)
            )
    return arrays


def _way_out(directory: pathlib.Path) -> str:
    """Which older checkpoint of a run can be read, as a closing sentence for one that cannot; "" of what is no run's.

    Who reads a run moves nothing in it, and takes no other step than the newest by himself: training falls back, and scores of a step
    that nobody asked for would pass for the newest's.
    """
    if (directory / "checkpoints").is_dir():
        directory = directory / "checkpoints" / str(newest_step(directory / "checkpoints"))
    if directory.parent.name != "checkpoints" or not directory.name.isdecimal():
        return ""
    for step in reversed(checkpoint_steps(directory.parent)):
        if step < int(directory.name):
            with contextlib.suppress(Exception):  # this one is damaged too
                found = _inspect_run(directory.parent / str(step))
                paths = list(flatten(found.stored.shapes))
                arrays = _restore(found, paths, dict.fromkeys(paths, SingleDeviceSharding(jax.devices()[0])))
                if digest_arrays(unflatten(arrays)) == {path: found.digests.get(path) for path in paths}:
                    return f" Nothing was changed. Checkpoint {step} is whole: give {directory.parent / str(step)}."
    return " Nothing was changed. No older checkpoint of this run is whole: take another run, or a copy of this one."


def _restore(native: Native, paths: list[str], shardings: Mapping[str, Any]) -> dict[str, Any]:
    """These arrays of the Orbax directory and no others."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(native.arrays.absolute()).item_metadata
        if metadata is None:
            raise ValueError(f"nothing tells which arrays {native.arrays} holds")
        tree = metadata[native.subtree] if native.subtree else metadata
        kept = {path: leaf for path, leaf in flatten(tree).items() if path in paths}
        target = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[path]) for path, leaf in kept.items()
        }
        item = {native.subtree: unflatten(target)} if native.subtree else unflatten(target)
        restored = checkpointer.restore(
            native.arrays.absolute(),
            args=ocp.args.PyTreeRestore(
                item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
            ),
        )
    return flatten(restored[native.subtree] if native.subtree else restored)
