"""ALBERT (Lan et al. 2019, arXiv:1909.11942): one block for all layers, narrow embeddings, sentence-order prediction."""

from __future__ import annotations

import dataclasses
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
    refuse,
    scales,
    table,
    with_defaults,
    without,
    write_keys,
)

# Lan et al. 2019, table 1; vocabulary of 30,000.
SIZES = {
    "base": dict(num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072, embedding_size=128),
    "large": dict(num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=4096, embedding_size=128),
    "xlarge": dict(num_layers=24, hidden_size=2048, num_heads=16, intermediate_size=8192, embedding_size=128),
    "xxlarge": dict(num_layers=12, hidden_size=4096, num_heads=64, intermediate_size=16384, embedding_size=128),
}
TRAITS = {**bert.TRAITS, "share_layers": True, "embedding_projection": True}

HEAD = "pretraining"  # what it is pre-trained with
MODEL_TYPES = {"albert": "Albert"}
CLASSES = without(bert.CLASSES, "ForNextSentencePrediction", "LMHeadModel")
DEFAULTS = {
    "vocab_size": 30000, "hidden_size": 4096, "num_attention_heads": 64, "intermediate_size": 16384,
    "hidden_act": "gelu_new", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
KEYS = (
    Key("embedding_size", "embedding_size", 128),
    Key("layer_groups", "num_hidden_groups", 1),
    Key("group_size", "inner_group_num", 1),
    *with_defaults(bert.KEYS, DEFAULTS),
)
OUTPUTS = {"seq_relationship_logits": "sop_logits"}  # what transformers calls it here
UNSUPPORTED = {"position_embedding_type": "absolute"}
COPIES = (r"position_ids$",)


def architecture(config: ModelConfig, vocab_size: int) -> Architecture:
    traits = TRAITS | dict(num_types=2, norm_epsilon=1e-12, activation="gelu_tanh")
    return from_config(config, vocab_size, **traits)


def from_hf(hf: Mapping[str, Any], names: Set[str]) -> Architecture:
    refuse(hf, UNSUPPORTED)
    fields = read_keys(hf, KEYS)
    # The format counts rounds: in each, all blocks of a group run.
    return from_flat(**fields | {"num_layers": fields["num_layers"] * fields["group_size"]}, **TRAITS)


def to_hf(arch: Architecture) -> dict[str, Any]:
    rounds = arch.num_layers // arch.group_size
    return write_keys(arch.replace(num_layers=rounds, embedding_size=arch.embedding_width), KEYS)


def prefix(arch: Architecture, head: str) -> str:
    return "" if head == "none" else "albert."


def weights(arch: Architecture, head: str) -> tuple[Weight, ...]:
    ours, theirs = "encoder/layers", "@encoder.albert_layer_groups.{}.albert_layers.{}"
    blocks = (
        *attention(f"{ours}/attention", f"{theirs}.attention", "query", "key", "value", "dense"),
        *scales(f"{ours}/attention_norm", f"{theirs}.attention.LayerNorm"),
        *matrix(f"{ours}/feed_forward/up", f"{theirs}.ffn"),
        *matrix(f"{ours}/feed_forward/down", f"{theirs}.ffn_output"),
        *scales(f"{ours}/feed_forward_norm", f"{theirs}.full_layer_layer_norm"),
    )
    return (
        *table("encoder/embeddings/tokens", "@embeddings.word_embeddings.weight"),
        *table("encoder/embeddings/positions", "@embeddings.position_embeddings.weight"),
        *table("encoder/embeddings/types", "@embeddings.token_type_embeddings.weight"),
        *scales("encoder/embeddings/norm", "@embeddings.LayerNorm"),
        *matrix("encoder/embeddings/projection", "@encoder.embedding_hidden_mapping_in"),
        *(dataclasses.replace(weight, group=arch.group_size) for weight in blocks),
        *matrix("pooler/dense", "@pooler"),
        *matrix("masked_lm/dense", "predictions.dense"),
        *scales("masked_lm/norm", "predictions.LayerNorm"),
        *bert.output_table("predictions", "predictions.decoder", arch),
        *matrix("next_sentence", "sop_classifier.classifier"),
        *matrix("classifier", "qa_outputs" if head == "span" else "classifier"),
    )
