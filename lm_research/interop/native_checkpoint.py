"""Native model directories, and training runs read as model directories.

A native directory holds `model.json` (family, architecture, head, digests of the arrays, and config.json of the Hugging Face
format), `params/` (an Orbax checkpoint of nested dicts), and the tokenizer's files. A run directory (run/run_directory.py)
holds the same data in other places.
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

from lm_research.common.bucket_copies import fetched
from lm_research.common.buckets import takes_arrays
from lm_research.common.disk import format_size, unwrapping_os_errors, write_atomically
from lm_research.common.documents import Count, Object, check, check_fields, read_json
from lm_research.common.paths import is_remote, odd_file
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
from lm_research.models.families import family_of, stored_as
from lm_research.models.head_kinds import HEADS
from lm_research.models.heads import HeadSpec
from lm_research.models.layer_spec import nested
from lm_research.models.limits import Depth, invalid_head_reason, invalid_reason
from lm_research.parallel.rules import tree_shardings
from lm_research.tokenizers.base import Tokenizer
from lm_research.tokenizers.run_tokenizer import format_for, roles_for, with_format
from lm_research.trees import flatten, unflatten

MODEL, PARAMS = "model.json", "params"
silence_duplicate_errors()
_FIX = "Restore it from a copy, or create the directory again."


class _Model(TypedDict, total=False):
    """model.json."""

    family: Required[str]
    architecture: Required[Object]
    head: Required[HeadSpec]
    config: Required[Object]
    lora: Object
    plugins: list[str]


class _Described(TypedDict):
    """The part of model.json that `_with_layers` returns."""

    architecture: Required[Architecture]


class _NativeModel(_Model):
    digests: Required[dict[str, str]]


class _Manifest(TypedDict):
    """The keys of a checkpoint's manifest.json that are used here."""

    digests: dict[str, str]
    files: dict[str, str]


# Orbax warns about an optional file of its own, and about missing arrays, for which `_restore` raises an error.
_ECHOES = ("Metadata file does not exist", "Failed to get item metadata")
logging.getLogger("absl").addFilter(lambda record: not record.getMessage().startswith(_ECHOES))


@dataclasses.dataclass(frozen=True)
class Native:
    """Description of a native or run directory: everything but the parameters.

    Attributes:
      definition: the model, with the requested head; `stored`: the one in the directory, with its adapters if it has any.
      family: a key of FAMILIES.
      config: config.json of the Hugging Face format, as far as the format can represent the model.
      arrays: the Orbax directory; `subtree`: key of the parameters in it, or "".
      digests: digests of the arrays, by path.
      files: the directory with the tokenizer.
      objective: name of a run's pre-training objective; "" for a task, or if it is not recorded.
      plugins: modules that were imported first because they may define the family, as listed by the config key `plugins`.
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
    """Whether this is a native model directory."""
    return (directory / MODEL).is_file()


def is_run(directory: pathlib.Path) -> bool:
    """Whether this is the directory of a training run, or of one of its checkpoints."""
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
    """Write a native directory; model.json is written last, so a directory without it is incomplete.

    Readers import the modules in `plugins` first, because these may define the family.
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
    """Make the description of a model that model.json stores.

    Args:
      definition: the model.
      family: a key of FAMILIES.
      config: its config.json in the Hugging Face format; None makes one, as far as that format can represent the model.
      tokens: ids of special tokens, by key, for a new config.json.
    """
    if config is None:
        config = with_tokens(_config(definition, family, {}), family, definition.arch, tokens or {})
    lora = {"lora": dataclasses.asdict(definition.lora)} if isinstance(definition, adapters.AdaptedDefinition) else {}
    return lora | {
        "family": family,
        "architecture": dataclasses.asdict(definition.arch),
        "head": dataclasses.asdict(definition.head),
        "config": dict(config),
    }


def inspect(directory: pathlib.Path, head: str | None = None, num_labels: int | None = None) -> Native:
    """Read the description of the model in a native or a run directory.

    Raises:
      PretrainedError: the directory is damaged, or there is no such head.
    """
    check_num_labels(num_labels)
    read = _inspect_native if is_native(directory) else _inspect_run
    try:
        found = read(directory)
    except (OSError, ValueError, TypeError, KeyError, ConfigError, CheckpointError, PretrainedError) as error:
        raise PretrainedError(
            f"The model directory {directory} cannot be read: {error}{_older_checkpoint(directory)}"
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
    files = fetched(step / "files")
    manifest = read_json(files / "manifest.json", _Manifest, error=PretrainedError, fix=_FIX)
    for name, digest in manifest["files"].items():
        path = files / name
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise ValueError(f"checkpoint {step.name} is damaged: files/{name} is not what was written")
    subtree = "ema" if any(path.startswith("ema/") for path in manifest["digests"]) else "params"
    prefix = f"{subtree}/"
    digests = {path.removeprefix(prefix): d for path, d in manifest["digests"].items() if path.startswith(prefix)}
    if not (files / MODEL).is_file():  # config.json does not determine the shapes and the head
        raise ValueError(
            f"checkpoint {step.name} has no {MODEL}, which describes the model and its head. Training writes it into every "
            "checkpoint: copy it from another checkpoint of this run, or resume the run until it saves the next one."
        )
    run = read_config(files / "config.json", PretrainedError)  # first: its plug-ins may define the family
    stored = read_json(files / MODEL, _Model, error=PretrainedError, fix=_FIX)
    definition = _definition(stored, files / MODEL)
    adapted = adapters.adapt(definition, resolve({"lora": stored.get("lora", {})}).lora)
    return Native(
        definition,
        adapted,
        stored["family"],
        stored["config"],
        step / "state",
        subtree,
        digests,
        files,
        "" if run["task"] else run["objective"]["name"],
        tuple(run["plugins"]),
    )


def _check_files(folder: pathlib.Path) -> None:
    if odd := odd_file(folder):  # Orbax would wait for a pipe
        raise ValueError(odd)


def _definition(content: _Model, path: pathlib.Path) -> ModelDefinition:
    """Build the model of a model.json; raises a PretrainedError if it is not valid."""
    family_of(content["family"])
    check_config(content["config"], f"{path}: config")
    described = {"architecture": _with_layers(content["architecture"], f"{path}: architecture")}
    arch = check(described, _Described, str(path), error=PretrainedError, fix=_FIX)["architecture"]
    if wrong := invalid_reason(arch) or invalid_head_reason(content["head"]):
        raise PretrainedError(f"{path}: {wrong}. {_FIX}")
    try:
        return define(arch, content["head"])
    except Exception as error:  # inconsistent sizes fail in various places
        raise PretrainedError(f"{path} does not describe a model ({type(error).__name__}: {error}). {_FIX}") from error


def _with_layers(architecture: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Upgrade an architecture from older files, in which the fields of all layers were next to those of the stack."""
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
    """Make config.json of the Hugging Face format, or as much of it as the format can represent."""
    try:
        return hf_config(definition, family, config)
    except PretrainedError:
        return {**stored_as(family, definition.arch, config).to_hf(definition.arch), **config}


def tokenizer_of(tokenizer: Tokenizer, arch: Architecture, head: str, objective: str = "") -> Tokenizer:
    """Return a run's tokenizer with the special tokens that this model was trained with; `objective` is Native's."""
    form, reader = format_for(arch.kind, head, objective), arch.encoder or arch
    return with_format(tokenizer, form, types=reader.num_types > 1, max_length=reader.max_length or None)


def tokens_of(tokenizer: Tokenizer, arch: Architecture, head: str, objective: str = "") -> dict[str, int]:
    """Ids of the special tokens of the tokenizer from `tokenizer_of`, by key of config.json."""
    roles = roles_for(tokenizer, format_for(arch.kind, head, objective))
    return {f"{role}_token_id": roles[role] for role in ("pad", "bos", "eos", "sep") if role in roles}


def missing_params(native: Native) -> list[str]:
    """List the paths of parameters that the directory does not have."""
    stored = flatten(native.stored.shapes)
    return [path for path in flatten(native.definition.shapes) if path not in stored]


def load_params(
    native: Native, mesh: Mesh | None = None, dtype: str | None = None, seed: int = 0
) -> tuple[Params, Report]:
    """Read the parameters onto the devices of a mesh; those that the directory does not have are initialized.

    Adapters are merged into their kernels.

    Raises:
      PretrainedError: the arrays cannot be read, or their digests differ from those recorded.
    """
    shapes, stored = flatten(native.definition.shapes), flatten(native.stored.shapes)
    common = [path for path, leaf in shapes.items() if path in stored and stored[path].shape == leaf.shape]
    parts = [path for path in stored if adapters.is_adapter(path) and f"{path.rpartition('/')[0]}/kernel" in common]
    shardings = dict.fromkeys([*shapes, *parts], SingleDeviceSharding(jax.devices()[0]))
    if mesh is not None:
        shardings = flatten(tree_shardings(mesh, native.definition.shapes, native.definition.axes))
        shardings |= flatten(tree_shardings(mesh, native.stored.shapes, native.stored.axes))
    arrays = _read(native, [*common, *parts], shardings)
    nonfinite = {path: found for path, x in arrays.items() if (found := nonfinite_in(x))}
    arrays = flatten(adapters.merged(native.stored, unflatten(arrays))[1])
    new = [path for path in shapes if path not in arrays]
    arrays |= native.definition.init_only(new, seed, shardings)
    if dtype:
        arrays = {path: x.astype(dtype) for path, x in arrays.items()}
    unused = tuple(path for path in stored if path not in {*common, *parts})
    report = Report(new=tuple(new), unused=unused, nonfinite=nonfinite)
    return unflatten({path: arrays[path] for path in shapes}), report


def load_adapted(native: Native) -> Params:
    """Read the parameters of a run with adapters, without merging these, onto the default device; raises like `load_params`."""
    paths = list(flatten(native.stored.shapes))
    return unflatten(_read(native, paths, dict.fromkeys(paths, SingleDeviceSharding(jax.devices()[0]))))


def _read(native: Native, paths: list[str], shardings: Mapping[str, Any]) -> dict[str, Any]:
    """Read arrays and check their digests."""
    try:
        arrays = _restore(native, paths, shardings)
    except Exception as error:  # Orbax raises many types for missing files, truncated data and wrong shapes
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise PretrainedError(
            f"The parameters in {native.arrays} cannot be read ({reason}).{_older_checkpoint(native.files.parent)}"
        ) from error
    found = digest_arrays(unflatten(arrays))
    for path in paths:
        if found[path] != native.digests.get(path):
            raise PretrainedError(
                f"{native.arrays}: array {path} is damaged: its digest is {found[path]}, but {native.digests.get(path)} was recorded."
                + _older_checkpoint(native.files.parent)
            )
    return arrays


def _older_checkpoint(directory: pathlib.Path) -> str:
    """Suggest an older intact checkpoint of a run in a sentence for an error message; "" outside of runs.

    Only training falls back to an older checkpoint by itself. Loading a model does not, because results of an older step
    could be mistaken for those of the newest.
    """
    if (directory / "checkpoints").is_dir():
        directory = directory / "checkpoints" / str(newest_step(directory / "checkpoints"))
    if directory.parent.name != "checkpoints" or not directory.name.isdecimal():
        return ""
    for step in reversed(checkpoint_steps(directory.parent)):
        if step < int(directory.name):
            with contextlib.suppress(Exception):  # this checkpoint is damaged as well
                found = _inspect_run(directory.parent / str(step))
                paths = list(flatten(found.stored.shapes))
                arrays = _restore(found, paths, dict.fromkeys(paths, SingleDeviceSharding(jax.devices()[0])))
                if digest_arrays(unflatten(arrays)) == {path: found.digests.get(path) for path in paths}:
                    return f" Nothing was changed. Checkpoint {step} is intact: use {directory.parent / str(step)}."
    return " Nothing was changed. No older checkpoint of this run is intact: use another run, or a copy of this one."


def _restore(native: Native, paths: list[str], shardings: Mapping[str, Any]) -> dict[str, Any]:
    """Restore only these arrays of the Orbax directory."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        arrays = native.arrays if takes_arrays(native.arrays) else fetched(native.arrays)
        arrays = arrays if is_remote(arrays) else arrays.absolute()
        metadata = checkpointer.metadata(arrays).item_metadata
        if metadata is None:
            raise ValueError(f"{native.arrays} has no metadata of its arrays")
        tree = metadata[native.subtree] if native.subtree else metadata
        kept = {path: leaf for path, leaf in flatten(tree).items() if path in paths}
        target = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[path]) for path, leaf in kept.items()
        }
        item = {native.subtree: unflatten(target)} if native.subtree else unflatten(target)
        restored = checkpointer.restore(
            arrays,
            args=ocp.args.PyTreeRestore(
                item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
            ),
        )
    return flatten(restored[native.subtree] if native.subtree else restored)
