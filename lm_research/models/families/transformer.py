"""The Transformer (Vaswani et al. 2017, arXiv:1706.03762): sinusoidal positions, one token table for both sides.

Its checkpoints in the Hugging Face world are those of Marian (Junczys-Dowmunt et al. 2018).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

from lm_research.config import ModelConfig
from lm_research.models.architecture import Architecture
from lm_research.models.families import bart
from lm_research.models.families.bart import AS_DECODER, KEPT, KEYS, LOSSES, STACK_KEYS, prefix  # noqa: F401
from lm_research.models.families.common import Weight, encoder_decoder

# Vaswani et al. 2017, table 3; vocabulary of 37,000 for English-German.
SIZES = {
    "base": dict(num_layers=6, hidden_size=512, num_heads=8, intermediate_size=2048),
    "big": dict(num_layers=6, hidden_size=1024, num_heads=16, intermediate_size=4096),
}
TRAITS = dict(norm="post", positions="sinusoidal")

MODEL_TYPES = {"marian": "Marian"}
TIE_FLAGS = ("tie_word_embeddings", "share_encoder_decoder_embeddings")
CLASSES = {"MTModel": "seq2seq_lm", "ForCausalLM": "causal_lm", "Model": "none"}
COPIES = (*bart.COPIES, r"embed_positions\.weight$")


def architecture(config: ModelConfig, vocab_size: int) -> Architecture:
    traits = TRAITS | dict(activation="relu", norm_epsilon=1e-6, embedding_scale=config.hidden_size**0.5)
    # The paper's projections of queries, keys and values are plain matrices; its feed-forward layers have biases.
    return encoder_decoder(config, vocab_size, qkv_bias=False, output_bias=False, **traits)


def from_hf(hf: Mapping[str, Any], names: Set[str]) -> Architecture:
    return bart.read(hf, TRAITS | {"head_bias": True})


def to_hf(arch: Architecture) -> dict[str, Any]:
    hf = bart.to_hf(arch) | {"decoder_vocab_size": arch.vocab_size, "tie_word_embeddings": arch.tied}
    if arch.encoder is None:
        return hf
    return hf | {
        "decoder_start_token_id": max(arch.pad_id, 0), "share_encoder_decoder_embeddings": arch.shared_tokens,
    }  # fmt: skip


def weights(arch: Architecture, head: str) -> tuple[Weight, ...]:
    """BART's, without a third table beside two untied ones unless the files had it: models whose sides differ have none."""
    if arch.shared_tokens:
        return bart.weights(arch, head)
    return tuple(dataclasses.replace(one, copies=()) for one in bart.weights(arch, head))
