"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT of half the depth, without token types and pooler."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from lm_research.config import ModelConfig
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.families import bert
from lm_research.models.families.common import (
    Key,
    Weight,
    attention,
    from_config,
    matrix,
    read_keys,
    scales,
    table,
    without,
    write_keys,
)

# Sanh et al. 2019, section 3.
SIZES = {"base": dict(num_layers=6, hidden_size=768, num_heads=12, intermediate_size=3072)}
TRAITS = {**bert.TRAITS, "norm_epsilon": 1e-12, "num_types": 0, "pooler_activation": "relu"}

MODEL_TYPES = {"distilbert": "DistilBert"}
CLASSES = without(bert.CLASSES, "ForPreTraining", "ForNextSentencePrediction", "LMHeadModel")
KEYS = (
    Key("vocab_size", "vocab_size", 30522),
    Key("hidden_size", "dim", 768),
    Key("num_layers", "n_layers", 6),
    Key("num_heads", "n_heads", 12),
    Key("intermediate_size", "hidden_dim", 3072),
    Key("activation", "activation", "gelu"),
    Key("dropout_rate", "dropout", 0.1),
    Key("attention_dropout_rate", "attention_dropout", 0.1),
    Key("max_length", "max_position_embeddings", 512),
    Key("init_std", "initializer_range", 0.02),
    Key("tied", "tie_word_embeddings", True),
    Key("pad_id", "pad_token_id", 0),
)
COPIES = (r"position_ids$",)


def architecture(config: ModelConfig, vocab_size: int) -> Architecture:
    return from_config(config, vocab_size, **TRAITS)


def from_hf(hf: Mapping[str, Any], names: Set[str]) -> Architecture:
    return from_flat(**read_keys(hf, KEYS), **TRAITS)


def to_hf(arch: Architecture) -> dict[str, Any]:
    return write_keys(arch, KEYS)


def prefix(arch: Architecture, head: str) -> str:
    return "" if head == "none" else "distilbert."


def weights(arch: Architecture, head: str) -> tuple[Weight, ...]:
    ours, theirs = "encoder/layers", "@transformer.layer.{}"
    return (
        *table("encoder/embeddings/tokens", "@embeddings.word_embeddings.weight"),
        *table("encoder/embeddings/positions", "@embeddings.position_embeddings.weight"),
        *scales("encoder/embeddings/norm", "@embeddings.LayerNorm"),
        *attention(f"{ours}/attention", f"{theirs}.attention", "q_lin", "k_lin", "v_lin", "out_lin"),
        *scales(f"{ours}/attention_norm", f"{theirs}.sa_layer_norm"),
        *matrix(f"{ours}/feed_forward/up", f"{theirs}.ffn.lin1"),
        *matrix(f"{ours}/feed_forward/down", f"{theirs}.ffn.lin2"),
        *scales(f"{ours}/feed_forward_norm", f"{theirs}.output_layer_norm"),
        *matrix("pooler/dense", "pre_classifier"),
        *matrix("masked_lm/dense", "vocab_transform"),
        *scales("masked_lm/norm", "vocab_layer_norm"),
        *table("masked_lm/bias", "vocab_projector.bias"),
        *table("masked_lm/table", "vocab_projector.weight"),
        *matrix("classifier", "qa_outputs" if head == "span" else "classifier"),
    )
