"""Settings of text embeddings in the files that sentence-transformers stores next to a model.

`modules.json` lists the modules that a text passes: the model, `1_Pooling`, whose config.json selects the pooling, optionally
`2_Dense`, a layer on the pooled vector, and `Normalize`. `sentence_bert_config.json` has the length in tokens at which texts are
truncated, `config_sentence_transformers.json` the prompts and the similarity. Checkpoints of a run, which have plain files only,
store the same settings in `embedding.json`.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

import numpy as np
from msgspec import Meta

from lm_research.common.disk import write_atomically
from lm_research.common.documents import Count, Object, check_fields, parse_json, read_bytes, short
from lm_research.common.paths import NOTHING, kind
from lm_research.errors import PretrainedError, UserError
from lm_research.interop.tensor_files import open_tensors
from lm_research.models.text_embedding import ACTIVATIONS, CONFIG, SIMILARITIES, Dense, EmbeddingConfig

NATIVE = "embedding.json"
# Our name of a pooling -> the key that is true in 1_Pooling/config.json; several are concatenated in this order.
_MODES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "last": "pooling_mode_lasttoken",
}
_NAMES = {
    "lasttoken": "last",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
}  # values of pooling_mode that differ from our names
_MODULES = "sentence_transformers.models"
_TRAINING_ONLY = ("Dropout",)  # modules without effect on a trained model


_CONFIG = "config.json"
_MODULE_FILES = (_CONFIG, "model.safetensors", "pytorch_model.bin")
_Prompts = dict[str, str | None]
# Keys of the files of modules, and of the files next to modules.json.
_KINDS: dict[str, Any] = {
    "pooling_mode": str | list[str],
    **dict.fromkeys(_MODES.values(), bool),
    "include_prompt": bool,
    "bias": bool,
    "use_residual": bool,
    "activation_function": str,
    "module_input_name": str,
    "module_output_name": str,
    "max_seq_length": Count,
    "prompts": _Prompts,
    "default_prompt_name": str,
    "similarity_fn_name": str,
    "truncate_dim": Count,
}


class _Module(TypedDict):
    """An entry of modules.json."""

    type: str
    path: str


class _Native(TypedDict):
    """embedding.json."""

    pooling: str
    normalize: bool
    max_length: Count
    further: list[str]
    include_prompt: bool
    prompts: dict[str, str]
    default_prompt_name: str | None
    similarity: str
    truncate_dim: Count


_Modules = Annotated[list[_Module], Meta(max_length=100)]


def load(directory: pathlib.Path) -> EmbeddingConfig | None:
    """Read the embedding settings of a model directory; None if there are none. modules.json overrides embedding.json.

    Raises:
      PretrainedError: one of the files is damaged.
    """
    try:
        if kind(directory / "modules.json") != NOTHING:
            return _load(directory)
        if kind(directory / NATIVE) == NOTHING:
            return None
        fields = _read(directory / NATIVE, _Native)
        return EmbeddingConfig(**{**fields, "further": tuple(fields["further"])})
    except (UserError, OSError, ValueError, KeyError) as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise PretrainedError(
            f"{directory}: modules.json and the files that it lists cannot be read ({reason.rstrip('. ')}). Copy them again, or delete "
            "modules.json to ignore them."
        ) from error


def _read(path: pathlib.Path, kind: Any = Object) -> Any:
    return parse_json(read_bytes(path, error=PretrainedError, fix=""), str(path), kind, error=PretrainedError, fix="")


def _inside(directory: pathlib.Path, path: str) -> pathlib.Path:
    """Resolve a path in modules.json; raises a PretrainedError if it is outside the model's directory after following links.

    Files in snapshots of huggingface_hub are links to a neighboring directory `blobs`, which belongs to the same model.
    """
    home, module = directory.resolve(), directory / path
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    inner = [module, *(module / name for name in _MODULE_FILES)]
    targets = [pathlib.Path(os.path.realpath(one)) for one in inner if "\0" not in path]
    if "\0" in path or not all(one.is_relative_to(home) or one.is_relative_to(blobs) for one in targets):
        raise PretrainedError(f"modules.json names {short(path)}, which is not in the model's directory")
    return module


def _load(directory: pathlib.Path) -> EmbeddingConfig:
    files: dict[str, bytes] = {}

    def read(name: str, kinds: Mapping[str, Any]) -> dict[str, Any]:
        path = directory / name
        if kind(path) == NOTHING:
            return {}
        files[name] = read_bytes(path, error=PretrainedError, fix="")
        found = parse_json(files[name], str(path), error=PretrainedError, fix="")
        check_fields(found, kinds, str(path), error=PretrainedError, fix="")
        return {key: value for key, value in found.items() if value is not None}

    files["modules.json"] = read_bytes(directory / "modules.json", error=PretrainedError, fix="")
    modules = parse_json(
        files["modules.json"], str(directory / "modules.json"), _Modules, error=PretrainedError, fix=""
    )
    fields: dict[str, Any] = {"pooling": "mean", "normalize": False}
    dense, further = list[Dense](), list[str]()
    for module in modules:
        layer, path = module["type"].rpartition(".")[2], module["path"]
        place = _inside(directory, path)
        config = read(f"{path}/{_CONFIG}", _KINDS) if path else {}
        if layer == "Pooling":
            fields |= {"pooling": _mode(config), "include_prompt": config.get("include_prompt", True)}
        elif layer == "Normalize":
            fields["normalize"] = True
        elif layer == "Dense" and not fields["normalize"] and _is_plain(config) and (weights := _weights(place)):
            dense.append(_dense(place, config, len(dense) and dense[-1].kernel.shape[1]))
            files |= {f"{path}/{name}": (place / name).read_bytes() for name in weights}
        elif layer not in ("Transformer", *_TRAINING_ONLY):
            further.append(layer)
    model_config = next(iter(sorted(directory.glob("sentence_*_config.json"))), None)
    config = read(CONFIG, _KINDS)
    return EmbeddingConfig(
        **fields,
        max_length=read(model_config.name, _KINDS).get("max_seq_length", 0) if model_config else 0,
        further=tuple(further),
        prompts={name: text or "" for name, text in config.get("prompts", {}).items()},
        default_prompt_name=config.get("default_prompt_name"),
        similarity=config["similarity_fn_name"] if config.get("similarity_fn_name") in SIMILARITIES else "cosine",
        truncate_dim=config.get("truncate_dim", 0),
        dense=tuple(dense),
        files=files,
    )


def _mode(config: dict[str, Any]) -> str:
    """Our name of the pooling, or several names joined by "+"."""
    modes = config.get("pooling_mode")
    if modes:
        return "+".join(_NAMES.get(mode, mode) for mode in ([modes] if isinstance(modes, str) else modes))
    ours = {key: name for name, key in _MODES.items()}
    others = [key for key in config if key.startswith("pooling_mode_") and key not in ours]
    return "+".join(ours.get(key, key) for key in (*ours, *others) if config.get(key) is True) or "mean"


def _activation(config: dict[str, Any]) -> str:
    return str(config.get("activation_function") or "torch.nn.Tanh").rpartition(".")[2]


def _is_plain(config: dict[str, Any]) -> bool:
    """Whether a Dense layer maps the vector of a text to another by a supported activation."""
    sides = {config.get(f"module_{side}_name") or "sentence_embedding" for side in ("input", "output")}
    return sides == {"sentence_embedding"} and _activation(config) in ACTIVATIONS


def _weights(directory: pathlib.Path) -> list[str]:
    return [name for name in ("model.safetensors", "pytorch_model.bin") if (directory / name).is_file()]


def _dense(directory: pathlib.Path, config: dict[str, Any], width: int) -> Dense:
    """Read a layer for vectors of this width; 0 if the width is not known."""
    tensors = open_tensors(directory)

    def read(name: str, rank: int) -> np.ndarray:
        if name not in tensors.names or len(tensors.shape(name)) != rank or tensors.dtype(name).kind not in "fV":
            raise PretrainedError(f"{directory} has no {name} with numbers in {rank} dimensions")
        return tensors.read(name).astype(np.float32)

    kernel = read("linear.weight", 2).T
    bias = read("linear.bias", 1) if config.get("bias", True) else None
    residual = None
    if config.get("use_residual"):
        square = kernel.shape[0] == kernel.shape[1]
        residual = np.eye(len(kernel), dtype=np.float32) if square else read("residual.weight", 2).T
    if len(kernel) != (width or len(kernel)) or any(
        x is not None and x.shape != shape for x, shape in ((bias, kernel.shape[1:]), (residual, kernel.shape))
    ):
        raise PretrainedError(f"the layers of {directory} do not fit each other")
    return Dense(kernel, bias, _activation(config), residual)


def save(directory: pathlib.Path, embedding: EmbeddingConfig, width: int) -> None:
    """Write the files of sentence-transformers into a model directory.

    Args:
      directory: of the model.
      embedding: the settings; if they were read from such files, these are written unchanged.
      width: the model's width.
    """
    for name, content in (embedding.files or _files(embedding, width)).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / name, content)


def _files(embedding: EmbeddingConfig, width: int) -> dict[str, bytes]:
    kinds = ["Transformer", "Pooling", *(["Normalize"] if embedding.normalize else [])]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds[1:], 1))]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"{_MODULES}.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    poolings = embedding.poolings
    pooling: dict[str, Any] = {"word_embedding_dimension": width} | {_MODES[one]: one in poolings for one in _MODES}
    if poolings != [one for one in _MODES if one in poolings]:  # flags cannot express another order
        file_names = {ours: name for name, ours in _NAMES.items()}
        pooling["pooling_mode"] = [file_names.get(one, one) for one in poolings]
    contents: dict[str, Any] = {"1_Pooling/config.json": pooling | {"include_prompt": embedding.include_prompt}}
    if embedding.normalize:
        contents["2_Normalize/config.json"] = {}
    if embedding.max_length:
        contents["sentence_bert_config.json"] = {"max_seq_length": embedding.max_length, "do_lower_case": False}
    contents[CONFIG] = {
        "prompts": dict(embedding.prompts),
        "default_prompt_name": embedding.default_prompt_name,
        "similarity_fn_name": embedding.similarity,
    } | ({"truncate_dim": embedding.truncate_dim} if embedding.truncate_dim else {})
    contents["modules.json"] = modules  # last, because it refers to the others
    return {name: (json.dumps(content, indent=2) + "\n").encode() for name, content in contents.items()}
