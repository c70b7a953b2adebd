"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT at half the depth, without token types and pooler."""

from __future__ import annotations

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES, Family
from lm_research.models.families.bert import Bert
from lm_research.models.families.common import (
    ConfigField,
    ParamMapping,
    attention,
    dense,
    norm,
    tensor,
    without,
)


class DistilBert(Family):
    """BERT at half the depth, without token types (Sanh et al. 2019)."""

    # Sanh et al. 2019, section 3.
    sizes = {"base": dict(num_layers=6, hidden_size=768, num_heads=12, intermediate_size=3072)}
    traits = Bert.traits | dict(norm_epsilon=1e-12, num_types=0, pooler_activation="relu")

    model_types = {"distilbert": "DistilBert"}
    classes = without(Bert.classes, "ForPreTraining", "ForNextSentencePrediction", "LMHeadModel")
    config_fields = (
        ConfigField("vocab_size", "vocab_size", 30522),
        ConfigField("hidden_size", "dim", 768, ("hidden_size",)),
        ConfigField("num_layers", "n_layers", 6, ("num_hidden_layers",)),
        ConfigField("num_heads", "n_heads", 12, ("num_attention_heads",)),
        ConfigField("intermediate_size", "hidden_dim", 3072),
        ConfigField("activation", "activation", "gelu"),
        ConfigField("dropout_rate", "dropout", 0.1),
        ConfigField("attention_dropout_rate", "attention_dropout", 0.1),
        ConfigField("max_length", "max_position_embeddings", 512),
        ConfigField("init_std", "initializer_range", 0.02),
        ConfigField("tied", "tie_word_embeddings", True),
        ConfigField("pad_id", "pad_token_id", 0),
    )

    base_prefix = "distilbert."
    redundant = (r"position_ids$",)

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        ours, theirs = "encoder/layers", "@transformer.layer.{}"
        return (
            *tensor("encoder/embeddings/tokens", "@embeddings.word_embeddings.weight"),
            *tensor("encoder/embeddings/positions", "@embeddings.position_embeddings.weight"),
            *norm("encoder/embeddings/norm", "@embeddings.LayerNorm"),
            *attention(f"{ours}/attention", f"{theirs}.attention", "q_lin", "k_lin", "v_lin", "out_lin"),
            *norm(f"{ours}/attention_norm", f"{theirs}.sa_layer_norm"),
            *dense(f"{ours}/feed_forward/up", f"{theirs}.ffn.lin1"),
            *dense(f"{ours}/feed_forward/down", f"{theirs}.ffn.lin2"),
            *norm(f"{ours}/feed_forward_norm", f"{theirs}.output_layer_norm"),
            *dense("pooler/dense", "pre_classifier"),
            *dense("masked_lm/dense", "vocab_transform"),
            *norm("masked_lm/norm", "vocab_layer_norm"),
            *tensor("masked_lm/bias", "vocab_projector.bias"),
            *tensor("masked_lm/table", "vocab_projector.weight"),
            *dense("classifier", "qa_outputs" if head == "span" else "classifier"),
        )


FAMILIES.register("distilbert")(DistilBert())
