"""MPT (MosaicML 2023): a pre-norm decoder with ALiBi and no biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Object, Rate
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import (
    ConfigField,
    ParamMapping,
    check_others,
    check_supported,
    dense,
    norm,
    tensor,
)
from lm_research.models.families.plain_decoder import PlainDecoder, classifier, size
from lm_research.models.limits import Scale


class MPT(PlainDecoder):
    """A pre-norm decoder with ALiBi and no biases (MosaicML 2023)."""

    # The released models' config.json files; vocabulary of 50,432.
    sizes = {"7b": size(32, 4096, 32), "30b": size(48, 7168, 64, max_length=8192)}
    traits = PlainDecoder.traits | dict(
        positions="alibi", norm_bias=False, qkv_bias=False, output_bias=False, mlp_bias=False, activation="gelu"
    )

    model_types = {"mpt": "Mpt"}
    config_fields = (
        ConfigField("vocab_size", "vocab_size", 50368),
        ConfigField("hidden_size", "d_model", 2048, ("hidden_size",)),
        ConfigField("num_layers", "n_layers", 24, ("num_hidden_layers",)),
        ConfigField("num_heads", "n_heads", 16, ("num_attention_heads",)),
        ConfigField("max_length", "max_seq_len", 2048),
        ConfigField("norm_epsilon", "layer_norm_epsilon", 1e-5),
        ConfigField("init_std", "initializer_range", 0.02),
        ConfigField("tied", "tie_word_embeddings", True),
        ConfigField("pad_id", "pad_token_id", -1),
    )
    other_keys = {"attn_config": Object}
    required = {
        "expansion_ratio": 4,
        "logit_scale": None,
        "no_bias": True,
        "embedding_fraction": 1.0,
        "norm_type": ("low_precision_layernorm", "layernorm"),
    }

    _inner_ratio = 4
    # Keys of attn_config, as those of config.json.
    _attention_keys = {"attn_pdrop": Rate, "clip_qkv": Scale, "softmax_scale": Scale}
    _attention_required = {
        "attn_type": "multihead_attention",
        "alibi": True,
        "alibi_bias_max": 8,
        "prefix_lm": False,
        "qk_ln": False,
        "attn_uses_sequence_id": False,
    }

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields, attention = super().read(hf), hf.get("attn_config") or {}
        check_others(attention, self._attention_keys, "config.json: attn_config")
        check_supported(attention, self._attention_required, "config.json: attn_config")
        rate = attention.get("attn_pdrop") or 0.0
        return fields | dict(
            intermediate_size=4 * fields["hidden_size"],
            dropout_rate=rate,  # one rate for all, and none on embeddings
            attention_dropout_rate=rate,
            projection_clip=attention.get("clip_qkv") or 0.0,
            attention_scale=attention.get("softmax_scale") or 0.0,
        )

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        last = arch.layers[-1]
        attention = {
            "alibi": True,
            "attn_pdrop": arch.attention_dropout_rate or 0,  # 0.0 is not valid in transformers
            "clip_qkv": last.projection_clip or None,
            "softmax_scale": last.attention_scale or None,
        }
        return super().to_hf(arch) | {"attn_config": attention}

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        ours, theirs = "decoder/layers", "@blocks.{}"
        fused: dict[str, Any] = dict(parts=(1, 1, 1))
        return (
            *tensor("decoder/embeddings/tokens", "@wte.weight"),
            *dense(f"{ours}/attention/query", f"{theirs}.attn.Wqkv", part=0, **fused),
            *dense(f"{ours}/attention/key", f"{theirs}.attn.Wqkv", part=1, **fused),
            *dense(f"{ours}/attention/value", f"{theirs}.attn.Wqkv", part=2, **fused),
            *dense(f"{ours}/attention/output", f"{theirs}.attn.out_proj", inputs=2),
            *norm(f"{ours}/attention_norm", f"{theirs}.norm_1"),
            *dense(f"{ours}/feed_forward/up", f"{theirs}.ffn.up_proj"),
            *dense(f"{ours}/feed_forward/down", f"{theirs}.ffn.down_proj"),
            *norm(f"{ours}/feed_forward_norm", f"{theirs}.norm_2"),
            *norm("decoder/final_norm", "@norm_f"),
            *tensor("next_token/table", "lm_head.weight"),
            *classifier(head),
        )


FAMILIES.register("mpt")(MPT())
