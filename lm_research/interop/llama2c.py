"""Weights of llama2.c (https://github.com/karpathy/llama2.c, `legacy_export` of export.py, version 0): a Llama in one .bin file.

Seven int32 numbers (width, feed-forward width, layers, heads, key and value heads, vocabulary, context), then float32 weights, each
kind of all layers together. A negative vocabulary means that the output table is stored separately, at the end.
"""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np

from lm_research.common.paths import FILE, kind
from lm_research.interop.gguf_model import rotated_apart
from lm_research.interop.tensor_files import Files, TensorSource
from lm_research.interop.tensor_types import StoredTensor, damaged, map_file

_HEADER_BYTES, _MAX_NUMBER = 28, 2**24


def is_llama2c(path: pathlib.Path) -> bool:
    """Whether a path is a .bin file, rather than a directory."""
    return path.suffix == ".bin" and kind(path) == FILE


def open_llama2c(path: pathlib.Path) -> tuple[dict[str, Any], TensorSource]:
    """Open a file: its config.json, and its tensors with the names and layouts of Hugging Face.

    Raises:
      PretrainedError: its size does not agree with its header, or it has another version.
    """
    data = map_file(path)
    header = data[:_HEADER_BYTES].view("<i4").tolist() if len(data) >= _HEADER_BYTES else []
    if not header or any(not 0 < abs(number) < _MAX_NUMBER for number in header) or min(header[:5] + header[6:]) < 0:
        raise damaged(path, "it does not begin with the header of a llama2.c file of version 0")
    width, inner, layers, heads, kv_heads, signed_vocab, length = header
    if heads % kv_heads or width % (2 * heads):
        raise damaged(path, f"its header has width {width}, {heads} heads and {kv_heads} key and value heads")
    vocab, head_size, kv_width = abs(signed_vocab), width // heads, width // heads * kv_heads
    tensors: dict[str, StoredTensor] = {}
    place = _HEADER_BYTES

    def add(name: str, *shape: int, rotated_heads: int = 0) -> None:
        nonlocal place
        size = 4 * math.prod(shape)
        content = data[place : place + size]
        place += size
        tensor = StoredTensor(path, shape, np.dtype(np.float32), lambda: content.view("<f4").reshape(shape))
        tensors[name] = rotated_apart(tensor, rotated_heads) if rotated_heads else tensor

    def add_layers(name: str, *shape: int, rotated_heads: int = 0) -> None:
        for layer in range(layers):
            add(f"model.layers.{layer}.{name}.weight", *shape, rotated_heads=rotated_heads)

    add("model.embed_tokens.weight", vocab, width)
    add_layers("input_layernorm", width)
    add_layers("self_attn.q_proj", width, width, rotated_heads=heads)
    add_layers("self_attn.k_proj", kv_width, width, rotated_heads=kv_heads)
    add_layers("self_attn.v_proj", kv_width, width)
    add_layers("self_attn.o_proj", width, width)
    add_layers("post_attention_layernorm", width)
    add_layers("mlp.gate_proj", inner, width)
    add_layers("mlp.down_proj", width, inner)
    add_layers("mlp.up_proj", inner, width)
    add("model.norm.weight", width)
    place += 4 * length * head_size  # cosines and sines of the rotary positions
    if signed_vocab < 0:
        add("lm_head.weight", vocab, width)
    if place != len(data):
        raise damaged(path, f"its header means {place:,} bytes, but it has {len(data):,}")
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": signed_vocab > 0,
        "bos_token_id": 1,
        "eos_token_id": 1,  # texts of the training data are separated by it, and llama2.c stops at it
    }
    return config, Files("llama2.c", tensors)
