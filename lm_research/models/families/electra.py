"""ELECTRA (Clark et al. 2020, arXiv:2003.10555): BERT as a generator of replacements and as their discriminator."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from lm_research.config import ModelConfig
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.families import bert
from lm_research.models.families.common import (
    Key,
    Weight,
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

# Clark et al. 2020, table 6. The generator has the width of 1/4 (1/3 for base) of the discriminator's, and its embeddings.
SIZES = {
    "small": dict(num_layers=12, hidden_size=256, num_heads=4, intermediate_size=1024, embedding_size=128),
    "base": dict(num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072, embedding_size=768),
    "large": dict(num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=4096, embedding_size=1024),
    "small_generator": dict(num_layers=12, hidden_size=256, num_heads=4, intermediate_size=1024, embedding_size=128),
    "base_generator": dict(num_layers=12, hidden_size=256, num_heads=4, intermediate_size=1024, embedding_size=768),
    "large_generator": dict(num_layers=24, hidden_size=256, num_heads=4, intermediate_size=1024, embedding_size=1024),
}
TRAITS = {**bert.TRAITS, "head_activation": "gelu", "pooler_activation": "gelu"}

MODEL_TYPES = {"electra": "Electra"}
CLASSES = {
    "ForPreTraining": "replaced_token",
    **without(bert.CLASSES, "ForPreTraining", "ForNextSentencePrediction", "LMHeadModel"),
    "ForCausalLM": "causal_lm",
}
DEFAULTS = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
KEYS = (Key("embedding_size", "embedding_size", 128), *with_defaults(bert.DECODER_KEYS, DEFAULTS))
AS_DECODER, KEPT = bert.AS_DECODER, bert.KEPT
UNSUPPORTED = {**bert.UNSUPPORTED, "summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"}
COPIES = (r"position_ids$",)


def architecture(config: ModelConfig, vocab_size: int) -> Architecture:
    traits = TRAITS | dict(num_types=2, norm_epsilon=1e-12)
    projects = config.embedding_size not in (0, config.hidden_size)
    return from_config(config, vocab_size, embedding_projection=projects, **traits)


def from_hf(hf: Mapping[str, Any], names: Set[str]) -> Architecture:
    refuse(hf, UNSUPPORTED)
    fields = read_keys(hf, KEYS)
    projects = fields["embedding_size"] != fields["hidden_size"]
    return from_flat(**fields, embedding_projection=projects, **TRAITS)


def to_hf(arch: Architecture) -> dict[str, Any]:
    return write_keys(arch.replace(embedding_size=arch.embedding_width), KEYS)


def prefix(arch: Architecture, head: str) -> str:
    return "" if head == "none" else "electra."


def weights(arch: Architecture, head: str) -> tuple[Weight, ...]:
    inner = {"classification": "classifier.dense"}.get(head, "sequence_summary.summary")
    outer = {"classification": "classifier.out_proj", "span": "qa_outputs"}.get(head, "classifier")
    found = (
        *bert.stack("@encoder.layer.{}", "@embeddings"),
        *matrix("encoder/embeddings/projection", "@embeddings_project"),
        *matrix("masked_lm/dense", "generator_predictions.dense"),
        *scales("masked_lm/norm", "generator_predictions.LayerNorm"),
        *table("masked_lm/bias", "generator_lm_head.bias"),
        *table("masked_lm/table", "generator_lm_head.weight"),
        *matrix("replaced_token/dense", "discriminator_predictions.dense"),
        *matrix("replaced_token/output", "discriminator_predictions.dense_prediction"),
        *matrix("pooler/dense", inner),
        *matrix("classifier", outer),
    )
    return bert.placed(found, arch, head)
