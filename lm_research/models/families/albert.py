"""ALBERT (Lan et al. 2019, arXiv:1909.11942): one block for all layers, narrow embeddings, sentence-order prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES, Family
from lm_research.models.families.bert import FIELDS, Bert
from lm_research.models.families.common import (
    ConfigField,
    FactorizedConfig,
    ParamMapping,
    attention,
    dense,
    norm,
    with_defaults,
    without,
    write_keys,
)
from lm_research.models.families.encoder_weights import embeddings, output_table

DEFAULTS = {
    "vocab_size": 30000,
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "intermediate_size": 16384,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


class Albert(Family):
    """An encoder of one block for all layers, with narrow embeddings (Lan et al. 2019)."""

    # Lan et al. 2019, table 1; vocabulary of 30,000.
    sizes = {
        "base": dict(num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072, embedding_size=128),
        "large": dict(num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=4096, embedding_size=128),
        "xlarge": dict(num_layers=24, hidden_size=2048, num_heads=16, intermediate_size=8192, embedding_size=128),
        "xxlarge": dict(num_layers=12, hidden_size=4096, num_heads=64, intermediate_size=16384, embedding_size=128),
    }
    traits = Bert.traits | dict(share_layers=True, embedding_projection=True)
    run_traits = dict(num_types=2, norm_epsilon=1e-12, activation="gelu_tanh")
    head = "pretraining"
    output_names = {"seq_relationship_logits": "sop_logits"}

    model_types = {"albert": "Albert"}
    classes = without(Bert.classes, "ForNextSentencePrediction", "LMHeadModel")
    config_fields = (
        ConfigField("embedding_size", "embedding_size", 128),
        ConfigField("layer_groups", "num_hidden_groups", 1),
        ConfigField("group_size", "inner_group_num", 1),
        *with_defaults(FIELDS, DEFAULTS),
    )
    required = {"position_embedding_type": "absolute"}

    base_prefix = "albert."
    redundant = (r"position_ids$",)

    @override
    def run_fields(self, config: FactorizedConfig) -> dict[str, Any]:
        return self.run_traits | {"embedding_size": config.embedding_size or 0}

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().read(hf)
        # In this format num_hidden_layers counts rounds, each of which runs all blocks of a group.
        return fields | {"num_layers": fields["num_layers"] * fields["group_size"]}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        rounds = arch.num_layers // arch.group_size
        return write_keys(arch.replace(num_layers=rounds, embedding_size=arch.embedding_width), self.config_fields)

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        ours, theirs = "encoder/layers", "@encoder.albert_layer_groups.{}.albert_layers.{}"
        blocks = (
            *attention(f"{ours}/attention", f"{theirs}.attention", "query", "key", "value", "dense"),
            *norm(f"{ours}/attention_norm", f"{theirs}.attention.LayerNorm"),
            *dense(f"{ours}/feed_forward/up", f"{theirs}.ffn"),
            *dense(f"{ours}/feed_forward/down", f"{theirs}.ffn_output"),
            *norm(f"{ours}/feed_forward_norm", f"{theirs}.full_layer_layer_norm"),
        )
        return (
            *embeddings(),
            *dense("encoder/embeddings/projection", "@encoder.embedding_hidden_mapping_in"),
            *(dataclasses.replace(weight, group=arch.group_size) for weight in blocks),
            *dense("pooler/dense", "@pooler"),
            *dense("masked_lm/dense", "predictions.dense"),
            *norm("masked_lm/norm", "predictions.LayerNorm"),
            *output_table("predictions", "predictions.decoder", arch),
            *dense("next_sentence", "sop_classifier.classifier"),
            *dense("classifier", "qa_outputs" if head == "span" else "classifier"),
        )


FAMILIES.register("albert", FactorizedConfig)(Albert())
