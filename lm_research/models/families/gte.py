"""GTE (Zhang et al. 2024, arXiv:2407.19669): BERT with rotary positions and gated layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.bert import FIELDS
from lm_research.models.families.common import ParamMapping, dense, norm, tensor, with_defaults, without
from lm_research.models.families.modernbert_format import fused_attention
from lm_research.models.families.nomic_bert import NomicBert


class GTE(NomicBert):
    """BERT with rotary positions and gated layers (Zhang et al. 2024)."""

    # Zhang et al. 2024, table 1: 305M parameters with XLM-R's vocabulary, rounded up to 250,048.
    sizes = NomicBert.sizes
    traits = NomicBert.traits | dict(qkv_bias=True, output_bias=True, mlp_output_bias=True, head_activation="gelu")
    run_traits = dict(num_types=1, norm_epsilon=1e-12, activation="gelu", rotary_theta=160000.0, pad_id=1)

    model_types = {"gte": "Gte"}
    classes = without(NomicBert.classes, "ForPreTraining")
    config_fields = with_defaults(
        FIELDS,
        {
            "vocab_size": 250048,
            "attention_probs_dropout_prob": 0.0,
            "max_position_embeddings": 8192,
            "type_vocab_size": 1,
            "pad_token_id": 1,
        },
    )
    required = {}

    base_prefix, other_prefixes = "gte.", ()
    modules = (
        (r"encoder\.layer\.", ("layers.",)),
        (r"attention\.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        (r"attention\.o_proj", ("self_attn.o_proj",)),
        (r"mlp\.up_gate_proj", ("mlp.up_proj", "mlp.gate_proj")),
        (r"attn_ln", ("post_attention_layernorm",)),
        (r"mlp_ln", ("post_mlp_layernorm",)),
        (r"lm_head\.norm", ("lm_head.layer_norm",)),
    )

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        untyped = hf.get("type_vocab_size") == 0  # in the English models
        fields = super().read({**hf, "type_vocab_size": 1} if untyped else hf)
        return fields | {"activation_dropout_rate": fields["dropout_rate"]} | ({"num_types": 0} if untyped else {})

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        ours, theirs = "encoder/layers", "@encoder.layer.{}"
        return (
            *tensor("encoder/embeddings/tokens", "@embeddings.word_embeddings.weight"),
            *tensor("encoder/embeddings/types", "@embeddings.token_type_embeddings.weight"),
            *norm("encoder/embeddings/norm", "@embeddings.LayerNorm"),
            *fused_attention(f"{ours}/attention", f"{theirs}.attention.qkv_proj"),
            *dense(f"{ours}/attention/output", f"{theirs}.attention.o_proj", inputs=2),
            *norm(f"{ours}/attention_norm", f"{theirs}.attn_ln"),
            *dense(f"{ours}/feed_forward/up", f"{theirs}.mlp.up_gate_proj", part=0, parts=(1, 1)),
            *dense(f"{ours}/feed_forward/gate", f"{theirs}.mlp.up_gate_proj", part=1, parts=(1, 1)),
            *dense(f"{ours}/feed_forward/down", f"{theirs}.mlp.down_proj"),
            *norm(f"{ours}/feed_forward_norm", f"{theirs}.mlp_ln"),
            *dense("pooler/dense", "@pooler.dense"),
            *dense("masked_lm/dense", "lm_head.dense"),
            *norm("masked_lm/norm", "lm_head.norm"),
            *tensor("masked_lm/bias", "lm_head.decoder.bias"),
            *tensor("masked_lm/table", "lm_head.decoder.weight"),
            *dense("classifier", "classifier"),
        )


FAMILIES.register("gte")(GTE())
