"""Models in GGUF files: config.json from the metadata, and names and layouts of Hugging Face for the tensors.

The architectures in gguf_architectures.py are read. tokenizers/gguf_tokenizer.py reads the tokenizer of a file.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lm_research.common.documents import is_finite, short
from lm_research.common.paths import FILE, kind
from lm_research.errors import PretrainedError
from lm_research.interop.gguf_architectures import ARCHITECTURES, GgufArchitecture, architecture_of
from lm_research.interop.gguf_file import GgufFile, GgufTensor, read_gguf
from lm_research.interop.tensor_files import FORMATS, Files, TensorSource
from lm_research.interop.tensor_types import StoredTensor, transposed
from lm_research.models.families import family_of, name_of
from lm_research.models.rotary import SHARE, rotary_frequencies
from lm_research.models.text_embedding import EmbeddingConfig

# Keys of metadata, without the architecture, that change what a model computes -> the only values that are supported.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0, 8.0),
    "attention.output_scale": (0.0, 1.0),
    "attention.shared_kv_layers": (0,),
    "attention.temperature_length": (0,),
    "expert_gating_func": (1,),  # softmax
    "expert_group_count": (0, 1),
    "expert_shared_count": (0, 1),
    "expert_weights_scale": (0.0, 1.0),
    "interleave_moe_layer_step": (0, 1),
    "leading_dense_block_count": (0,),
    "moe_every_n_layers": (0, 1),
    "nextn_predict_layers": (0,),
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "router_logit_softcapping": (0.0,),
}
# Further ones, which only the architectures that read them support.
_READ_BY_SOME = (
    "attention.scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attn_logit_softcapping",
    "embedding_scale",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
)
_ROPE_FACTORS = "rope_freqs.weight"  # divisors of the rotary frequencies, as Llama 3.1 scales them
_OTHER_FACTORS = ("rope_factors_short.weight", "rope_factors_long.weight")  # LongRoPE's
_ORIGINAL = 8192  # Llama 3's context before scaling, which files do not have
# Keys of YaRN's options -> those of config.json.
_YARN = {"yarn_attn_factor": "attention_factor", "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
# Keys of config.json -> projections, one of which has a bias in the file if the key is true.
_BIASES = {
    "attention_bias": ("attn_q", "attn_qkv"),
    "attention_out_bias": ("attn_output",),
    "mlp_bias": ("ffn_up",),
    "qkv_bias": ("attn_q",),
    "use_bias": ("attn_output",),
}
_POOLINGS = {1: "mean", 2: "cls", 3: "last"}  # values of pooling_type
_FIX = "Use the original model instead."


def find(directory: pathlib.Path) -> pathlib.Path | None:
    """The GGUF file that a path is, or that a directory has instead of config.json and other weights; None if there is none.

    Raises:
      PretrainedError: the directory has several.
    """
    if directory.suffix == ".gguf" and kind(directory) == FILE:
        return directory
    others = ("config.json", *(one.file for one in FORMATS), *(f"{one.file}.index.json" for one in FORMATS))
    if not directory.is_dir() or any((directory / name).exists() for name in others):
        return None
    files = sorted(directory.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:5])
        raise PretrainedError(f"{directory} has {len(files)} GGUF files ({names}). Give the path of one of them.")
    return files[0] if files else None


def open_gguf(path: pathlib.Path) -> tuple[dict[str, Any], TensorSource]:
    """Open a GGUF file: its config.json, and its tensors with the names and layouts of Hugging Face.

    Raises:
      PretrainedError: the file is damaged, or its architecture is not supported.
    """
    file = read_gguf(path)
    arch = _architecture(path, file)
    config = _config(path, file, arch)
    input_first = family_of(name_of(config)).input_first
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in file.tensors.items():
        if name == _ROPE_FACTORS or name in _OTHER_FACTORS and "long_factor" in config["rope_parameters"]:
            continue
        block, pattern, end = _parts(path, name, arch)
        theirs = arch.names[pattern]
        theirs = theirs.replace("{}", block, 1)
        if "{}" in theirs:
            if len(tensor.shape) != 3:
                raise PretrainedError(
                    f"{path}: tensor {name} has shape {tensor.shape}, but experts have three axes. {_FIX}"
                )
            experts = ((theirs.replace("{}", str(i)), tensor.part(i)) for i in range(tensor.shape[0]))
            tensors.update((f"{one}.{end}", expert) for one, expert in experts)
            continue
        stored = _layout(tensor, pattern.rpartition(".")[2], end, arch, config)
        tensors[f"{theirs}.{end}"] = transposed(stored) if theirs.endswith(input_first) else stored
    return config, Files("gguf", tensors)


def embedding(path: pathlib.Path) -> EmbeddingConfig | None:
    """Settings of text embeddings of a GGUF file; None if there are none, or if the path is that of something else."""
    found = find(path)
    entries = {} if found is None else read_gguf(found).metadata
    poolings = (_POOLINGS.get(value) for key, value in entries.items() if key.endswith(".pooling_type"))
    pooling = next(poolings, None)
    return EmbeddingConfig(pooling=pooling) if pooling else None


def _architecture(path: pathlib.Path, file: GgufFile) -> GgufArchitecture:
    data, name = file.metadata, file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise PretrainedError(
            f"{path}: general.architecture is {short(name)}, which is not read from GGUF files. Supported: {', '.join(ARCHITECTURES)}. {_FIX}"
        )
    if (parts := data.get("split.count", 0)) not in (0, 1):
        raise PretrainedError(
            f"{path}: split.count is {short(parts)}: the model is split into several files, which are not read. Merge them with "
            "llama.cpp's llama-gguf-split --merge."
        )
    for key, allowed in {**_SUPPORTED, "attention.causal": (ARCHITECTURES[name].causal,)}.items():
        value = data.get(f"{name}.{key}", allowed[0])
        if value not in allowed:
            raise PretrainedError(f"{path}: {name}.{key} is {short(value)}, which is not supported. {_FIX}")
    if "token_embd.weight" not in file.tensors:
        raise PretrainedError(f"{path}: it has no tensor token_embd.weight. Download it again.")
    return architecture_of(name, file)


def _config(path: pathlib.Path, file: GgufFile, arch: GgufArchitecture) -> dict[str, Any]:
    name = file.metadata["general.architecture"]
    own = {key: value for key, value in file.metadata.items() if key.startswith(f"{name}.")}
    data = {key.removeprefix(f"{name}."): _decimal(value) for key, value in own.items()}

    def number(key: str) -> Any:
        value = data.get(key)
        if isinstance(value, list) and value and all(one == value[0] for one in value):  # one for each layer
            value = value[0]
        if not is_finite(value) or not key.endswith(("epsilon", "scale", "capping")) and type(value) is not int:
            raise PretrainedError(f"{path}: {name}.{key} is {short(value)}; it must be a number. Download it again.")
        return value

    for key in _READ_BY_SOME:
        if data.get(key) and key not in arch.optional:
            raise PretrainedError(
                f"{path}: {name}.{key} is {short(data[key])}, which is not supported for this architecture. {_FIX}"
            )
    given = {key: ours for key, ours in arch.optional.items() if key in data}
    config: dict[str, Any] = {ours: number(key) for key, ours in {**arch.keys, **given}.items()}
    config |= {"model_type": arch.model_type, "architectures": [arch.class_name], **arch.fixed}
    heads = config[arch.keys["attention.head_count"]]
    if heads < 1:
        raise PretrainedError(f"{path}: {name}.attention.head_count is {heads}. Download it again.")
    kv_heads = number("attention.head_count_kv") if "attention.head_count_kv" in data else heads
    width = (
        _head_width(file, heads, kv_heads)
        or data.get("attention.key_length")
        or config[arch.keys["embedding_length"]] // heads
    )
    config |= {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": arch.tied or "output.weight" not in file.tensors,
        **({arch.kv_key: kv_heads} if arch.kv_key else {}),
        **({"rope_parameters": _rope(path, name, file, config, data, width, arch)} if arch.rotary else {}),
    }
    known = family_of(name_of(config)).other_keys
    config |= {"head_dim": width} if "head_dim" in known else {}
    for key, layers in _BIASES.items():
        if key in known:
            config[key] = any(f"blk.0.{layer}.bias" in file.tensors for layer in layers)
    if config.get("sliding_window") == 0:
        config["sliding_window"] = None
    config |= arch.more(file, data, config)
    none = {} if config.get("is_encoder_decoder") else {"pad_token_id": None}  # instead of the family's default
    return config | none | _token_ids(file.metadata)


def _decimal(value: Any) -> Any:
    """The shortest number with the same value in float32, in which files have it: 1e-06 instead of 9.999999974752427e-07."""
    return float(str(np.float32(value))) if type(value) is float and np.float32(value) == value else value


def _head_width(file: GgufFile, heads: int, kv_heads: int) -> int:
    """Width of a head by the shapes of the projections; 0 if there are none by these names."""
    for name, count in (("attn_q", heads), ("attn_qkv", heads + 2 * kv_heads)):
        if (tensor := file.tensors.get(f"blk.0.{name}.weight")) is not None:
            return tensor.shape[0] // count if count > 0 else 0
    return 0


def _token_ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Ids of special tokens; a text ends with the end token, or with that of a turn."""
    ids: dict[str, Any] = {}
    for token, ours in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        if type(number := metadata.get(f"tokenizer.ggml.{token}_token_id")) is int:
            ids[f"{ours}_token_id"] = number
    turn = metadata.get("tokenizer.ggml.eot_token_id")
    if type(turn) is int and "eos_token_id" in ids and turn != ids["eos_token_id"]:
        ids["eos_token_id"] = [ids["eos_token_id"], turn]
    return ids


def _rope(
    path: pathlib.Path,
    name: str,
    file: GgufFile,
    config: Mapping[str, Any],
    data: Mapping[str, Any],
    width: int,
    arch: GgufArchitecture,
) -> dict[str, Any]:
    theta, scaling = float(data.get("rope.freq_base", 10000.0)), data.get("rope.scaling.type", "none")
    rotated = data.get("rope.dimension_count", width)
    rope: dict[str, Any] = {"rope_theta": theta}
    if arch.partial:
        rope[SHARE] = rotated / width
    elif rotated != width:
        raise PretrainedError(
            f"{path}: {name}.rope.dimension_count is {rotated}, but this architecture rotates whole heads of {width} elements. {_FIX}"
        )
    if _ROPE_FACTORS in file.tensors:
        return rope | _llama3(path, np.asarray(file.tensors[_ROPE_FACTORS].load(), np.float64), theta)
    if scaling == "none" or scaling == "longrope" and _OTHER_FACTORS[0] in file.tensors:
        return rope | {"rope_type": "default"}
    factor = float(data.get("rope.scaling.factor", 1.0))
    if scaling == "linear":
        return rope | {"rope_type": "linear", "factor": factor}
    if scaling == "yarn":
        original = data.get("rope.scaling.original_context_length", config.get("max_position_embeddings"))
        options = {
            ours: float(data[f"rope.scaling.{key}"]) for key, ours in _YARN.items() if f"rope.scaling.{key}" in data
        }
        return rope | {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **options}
    raise PretrainedError(f"{path}: {name}.rope.scaling.type is {short(scaling)}, which is not supported. {_FIX}")


def _llama3(path: pathlib.Path, factors: np.ndarray, theta: float) -> dict[str, Any]:
    """The scaling of Llama 3.1 whose divisors a file has, with the constants of all released models."""
    scaling: dict[str, Any] = {
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": _ORIGINAL,
    }
    width = 2 * len(factors)
    plain = rotary_frequencies(width, theta, {})
    expected = plain / rotary_frequencies(width, theta, {"type": "llama3", **scaling})
    if not np.allclose(factors, expected, rtol=1e-3):
        raise PretrainedError(
            f"{path}: {_ROPE_FACTORS} is not Llama 3's scaling of rotary positions, which alone is supported. {_FIX}"
        )
    return {"rope_type": "llama3", **scaling}


def _parts(path: pathlib.Path, name: str, arch: GgufArchitecture) -> tuple[str, str, str]:
    """The index of the block ("" outside of blocks), the name with "{}" instead of it, and "weight" or "bias"."""
    found = re.fullmatch(r"((?:\w+\.)??)(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if found is not None:
        pattern = f"{found[1]}{'blk.{}.' if found[2] else ''}{found[3]}"
        if pattern in arch.names:
            return found[2] or "", pattern, found[4]
    raise PretrainedError(f"{path}: tensor {short(name)} does not belong to a supported architecture. {_FIX}")


def _layout(tensor: GgufTensor, name: str, end: str, arch: GgufArchitecture, config: Mapping[str, Any]) -> StoredTensor:
    """Convert a tensor, called `name` in a block, to the layout of transformers."""
    heads = config[arch.keys["attention.head_count"]]
    kv_heads = config.get(arch.kv_key, heads)
    if arch.pairs and name in ("attn_q", "attn_k"):
        return rotated_apart(tensor, heads if name == "attn_q" else kv_heads)
    if arch.fused_by_group and name == "attn_qkv":
        return _reordered(tensor, _grouped(tensor, heads, kv_heads))
    if arch.norm_offset and name.endswith("norm") and end == "weight":
        less = _changed(tensor, lambda scale: scale.astype(np.float32) - np.float32(arch.norm_offset))
        return dataclasses.replace(less, dtype=np.dtype(np.float32))
    if name == "ffn_gate_inp_shexp" and len(tensor.shape) == 1:
        return dataclasses.replace(_changed(tensor, lambda row: row[None]), shape=(1, *tensor.shape))
    return tensor


def _changed(tensor: StoredTensor, change: Callable[[np.ndarray], np.ndarray]) -> StoredTensor:
    return StoredTensor(tensor.path, tensor.shape, tensor.dtype, lambda: change(tensor.load()))


def _reordered(tensor: StoredTensor, rows: np.ndarray) -> StoredTensor:
    return _changed(tensor, lambda matrix: matrix[rows])


def rotated_apart(tensor: StoredTensor, heads: int) -> StoredTensor:
    """Reorder the rows of a query or key projection: the elements that are rotated together become half a head apart, instead of neighbors."""
    _check_rows(tensor, 2 * heads)
    return _reordered(tensor, np.arange(tensor.shape[0]).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1))


def _grouped(tensor: StoredTensor, heads: int, kv_heads: int) -> np.ndarray:
    """Order of rows by key and value head: its queries, its key and its value, instead of all queries, all keys, all values."""
    _check_rows(tensor, heads + 2 * kv_heads)
    width = tensor.shape[0] // (heads + 2 * kv_heads)
    parts = np.split(np.arange(tensor.shape[0]), np.cumsum([heads * width, kv_heads * width]))
    return np.concatenate([part.reshape(kv_heads, -1) for part in parts], axis=1).reshape(-1)


def _check_rows(tensor: StoredTensor, parts: int) -> None:
    if not tensor.shape or tensor.shape[0] % parts:
        raise PretrainedError(
            f"{tensor.path}: a projection of {math.prod(tensor.shape[:1])} rows does not divide into its heads. Download it again."
        )
