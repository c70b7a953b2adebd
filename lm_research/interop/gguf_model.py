"""Models in GGUF files: config.json from the metadata, and names and layouts of Hugging Face for the tensors.

The architectures in `MODEL_TYPES` are read, whose conversion by llama.cpp (convert_hf_to_gguf.py) is inverted here.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm_research.common.documents import is_finite, short
from lm_research.common.paths import FILE, kind
from lm_research.errors import PretrainedError
from lm_research.interop.gguf_file import GgufFile, read_gguf
from lm_research.interop.tensor_files import FORMATS, Files, TensorSource
from lm_research.interop.tensor_types import StoredTensor
from lm_research.models.rotary import rotary_frequencies

# general.architecture -> model_type and class name.
MODEL_TYPES = {"llama": ("llama", "Llama"), "qwen2": ("qwen2", "Qwen2"), "qwen3": ("qwen3", "Qwen3")}
# Key of metadata without the architecture -> key of config.json, and its type.
_KEYS = {
    "block_count": ("num_hidden_layers", int),
    "embedding_length": ("hidden_size", int),
    "feed_forward_length": ("intermediate_size", int),
    "attention.head_count": ("num_attention_heads", int),
    "context_length": ("max_position_embeddings", int),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", float),
}
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FACTORS = "rope_freqs.weight"  # divisors of the rotary frequencies, as Llama 3.1 scales them
_ORIGINAL = 8192  # Llama 3's context before scaling, which files do not have
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
    config = config_of(path, file)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in file.tensors.items():
        if name == _FACTORS:
            continue
        block, short_name, end = _parts(path, name)
        ours = f"model.layers.{block}.{_NAMES[short_name]}.{end}" if block else f"{_NAMES[short_name]}.{end}"
        permuted = config["model_type"] == "llama" and short_name in heads
        tensors[ours] = _unpermuted(tensor, heads[short_name]) if permuted else tensor
    return config, Files("gguf", tensors)


def config_of(path: pathlib.Path, file: GgufFile) -> dict[str, Any]:
    """Make config.json from the metadata of a file; raises as `open_gguf`."""
    data, name = file.metadata, file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in MODEL_TYPES:
        raise PretrainedError(
            f"{path}: general.architecture is {short(name)}, which is not read from GGUF files. Supported: {', '.join(MODEL_TYPES)}. {_FIX}"
        )
    if data.get(f"{name}.expert_count"):
        raise PretrainedError(
            f"{path}: it has experts ({name}.expert_count), which are not read from GGUF files. {_FIX}"
        )
    config: dict[str, Any] = {}
    for key, (ours, of_type) in _KEYS.items():
        value = data.get(f"{name}.{key}")
        if not is_finite(value) or of_type is int and type(value) is not int:
            raise PretrainedError(f"{path}: {name}.{key} is {short(value)}; it must be a number. Download it again.")
        config[ours] = of_type(value)
    model_type, prefix = MODEL_TYPES[name]
    if "token_embd.weight" not in file.tensors or config["num_attention_heads"] < 1:
        raise PretrainedError(f"{path}: it has no tensor token_embd.weight, or no heads. Download it again.")
    config |= {
        "model_type": model_type,
        "architectures": [f"{prefix}ForCausalLM"],
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "num_key_value_heads": data.get(f"{name}.attention.head_count_kv", config["num_attention_heads"]),
        "head_dim": data.get(f"{name}.attention.key_length", config["hidden_size"] // config["num_attention_heads"]),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _rope(path, name, file, config),
    }
    if model_type == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    for token in ("bos", "eos", "padding"):
        if type(number := data.get(f"tokenizer.ggml.{token}_token_id")) is int:
            config[f"{token.removesuffix('ding')}_token_id"] = number
    return config


def _rope(path: pathlib.Path, name: str, file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    data = file.metadata
    theta, scaling = float(data.get(f"{name}.rope.freq_base", 10000.0)), data.get(f"{name}.rope.scaling.type", "none")
    factor = float(data.get(f"{name}.rope.scaling.factor", 1.0))
    if _FACTORS in file.tensors:
        return _llama3(path, np.asarray(file.tensors[_FACTORS].load(), np.float64), theta)
    if scaling == "none":
        return {"rope_type": "default", "rope_theta": theta}
    if scaling == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    if scaling == "yarn":
        original = data.get(f"{name}.rope.scaling.original_context_length", config["max_position_embeddings"])
        return {
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": factor,
            "original_max_position_embeddings": original,
        }
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
            f"{path}: {_FACTORS} is not Llama 3's scaling of rotary positions, which alone is supported. {_FIX}"
        )
    return {"rope_type": "llama3", "rope_theta": theta, **scaling}


def _parts(path: pathlib.Path, name: str) -> tuple[str, str, str]:
    """The index of the block ("" outside of blocks), the short name, and "weight" or "bias"."""
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if found is None or found[2] not in _NAMES:
        raise PretrainedError(f"{path}: tensor {short(name)} does not belong to a supported architecture. {_FIX}")
    return found[1] or "", found[2], found[3]


def _unpermuted(tensor: StoredTensor, heads: int) -> StoredTensor:
    """A query or key projection whose rotated pairs are half a head apart; llama.cpp stores them next to each other."""

    def load() -> np.ndarray:
        rows, *rest = tensor.shape
        pairs = tensor.load().reshape(heads, rows // heads // 2, 2, math.prod(rest))
        return pairs.swapaxes(1, 2).reshape(tensor.shape)

    if tensor.shape[0] % (2 * heads):
        raise PretrainedError(
            f"{tensor.path}: a projection of {tensor.shape[0]} rows has no {heads} heads. Download it again."
        )
    return dataclasses.replace(tensor, load=load)
