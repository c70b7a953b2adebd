"""Qwen3 (Yang et al. 2025, arXiv:2505.09388): Qwen2 with norms of queries and keys, and without biases."""

from __future__ import annotations

from lm_research.models.families.base import FAMILIES
from lm_research.models.families.llama_like import LlamaLike
from lm_research.models.families.qwen2 import Qwen2

# Name: layers, width, heads, feed-forward width, and whether embeddings are tied (Yang et al. 2025, table 1, and the released files).
_TABLE = {
    "0.6b": (28, 1024, 16, 3072, True),
    "1.7b": (28, 2048, 16, 6144, True),
    "4b": (36, 2560, 32, 9728, True),
    "8b": (36, 4096, 32, 12288, False),
    "14b": (40, 5120, 40, 17408, False),
    "32b": (64, 5120, 64, 25600, False),
}


class Qwen3(Qwen2):
    """A decoder with Llama's layers, and norms of queries and keys in each head (Yang et al. 2025)."""

    sizes = {
        name: dict(
            num_layers=n,
            hidden_size=d,
            num_heads=h,
            num_kv_heads=8,
            head_size=128,
            intermediate_size=f,
            tie_word_embeddings=tied,
        )
        for name, (n, d, h, f, tied) in _TABLE.items()
    }
    traits = {**LlamaLike.traits, "query_key_norm": "head"}
    run_traits = {**LlamaLike.run_traits, "rotary_theta": 1e6}
    model_types = {"qwen3": "Qwen3"}
    other_keys = {**Qwen2.other_keys, "attention_bias": bool}

    _defaults = {"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096}


FAMILIES.register("qwen3")(Qwen3())
