"""Falcon (Almazrouei et al. 2023, arXiv:2311.16867): attention and feed-forward layer in parallel, with few key and value heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Count, Size
from lm_research.config import ModelConfig, key
from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture
from lm_research.models.families import rotary
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import FIX, ConfigField, ParamMapping, given, norm, tensor
from lm_research.models.families.plain_decoder import PlainDecoder, classifier, fused_block, size

NO_BIAS = dict(qkv_bias=False, output_bias=False, mlp_bias=False)
VARIANTS: dict[str, dict[str, Any]] = {
    "one_norm": dict(NO_BIAS, norm="parallel", shared_norm=True, positions="rotary"),
    "two_norms": dict(NO_BIAS, norm="parallel", positions="rotary"),
    "alibi": dict(positions="alibi", scaled_alibi=True),
}


@dataclasses.dataclass(frozen=True)
class FalconConfig(ModelConfig):
    """Model section of Falcon."""

    variant: str | None = key(
        None,
        "Falcon's layers: parallel branches with one norm (None) or two norms, or the earlier ones with ALiBi.",
        choices=tuple(VARIANTS),
    )


class Falcon(PlainDecoder):
    """A decoder with few key and value heads, whose attention and feed-forward layer run in parallel (Almazrouei et al. 2023)."""

    # Almazrouei et al. 2023, table 16, and the released models' config.json files; vocabulary of 65,024, that of rw_1b 50,304.
    sizes = {
        "rw_1b": size(24, 2048, 32, variant="alibi"),
        "7b": size(32, 4544, 71, num_kv_heads=1),
        "11b": size(60, 4096, 32, num_kv_heads=8, max_length=8192),
        "40b": size(60, 8192, 128, num_kv_heads=8, variant="two_norms"),
        "180b": size(80, 14848, 232, num_kv_heads=8, variant="two_norms"),
    }

    model_types = {"falcon": "Falcon"}
    packed_positions = "uncached"
    config_fields = (
        ConfigField("vocab_size", "vocab_size", 65024),
        ConfigField("hidden_size", "hidden_size", 4544, ("n_embed",)),
        ConfigField("num_layers", "num_hidden_layers", 32),
        ConfigField("num_heads", "num_attention_heads", 71),
        ConfigField("max_length", "max_position_embeddings", 2048),
        ConfigField("activation", "activation", "gelu"),
        ConfigField("dropout_rate", "hidden_dropout", 0.0),
        ConfigField("attention_dropout_rate", "attention_dropout", 0.0),
        ConfigField("norm_epsilon", "layer_norm_epsilon", 1e-5),
        ConfigField("init_std", "initializer_range", 0.02),
        ConfigField("tied", "tie_word_embeddings", True),
        ConfigField("pad_id", "pad_token_id", -1),
    )
    other_keys = {
        **dict.fromkeys(("alibi", "bias", "multi_query", "new_decoder_architecture", "parallel_attn"), bool),
        "num_ln_in_parallel_attn": Count,
        "num_kv_heads": Size,
        "ffn_hidden_size": Size,
        **rotary.KEYS,
    }
    required = {"apply_residual_connection_post_layernorm": False}

    _grouped = True

    @override
    def run_fields(self, config: FalconConfig) -> dict[str, Any]:
        return VARIANTS[config.variant or "one_norm"] | dict(activation="gelu")

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields, biased, alibi = super().read(hf), given(hf, "bias", False), given(hf, "alibi", False)
        grouped, parallel = given(hf, "new_decoder_architecture", False), given(hf, "parallel_attn", True)
        heads, norms = fields["num_heads"], hf.get("num_ln_in_parallel_attn") or (2 if grouped else 1)
        single = not grouped and given(hf, "multi_query", True)
        kv_heads = 1 if single else given(hf, "num_kv_heads", heads)
        for name, wrong in {
            "parallel_attn": grouped and not parallel,
            "num_ln_in_parallel_attn": parallel and norms != 1 and not (grouped and norms == 2),
            "num_kv_heads": not (grouped or single) and kv_heads != heads,
        }.items():
            if wrong:
                raise PretrainedError(
                    f"config.json: {name} is {hf.get(name)}, which is not possible with new_decoder_architecture={grouped}. {FIX}"
                )
        rope = dict(scaled_alibi=True) if alibi else rotary.read_rotary(hf, max_length=fields["max_length"])
        return {
            **fields,
            **rope,
            "positions": "alibi" if alibi else "rotary",
            "num_kv_heads": kv_heads,
            "intermediate_size": hf.get("ffn_hidden_size") or 4 * fields["hidden_size"],
            "norm": "parallel" if parallel else "pre",
            "shared_norm": parallel and norms == 1,
            **dict.fromkeys(("qkv_bias", "output_bias", "mlp_bias"), biased),
        }

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        last, few = arch.layers[-1], 1 < arch.kv_heads < arch.num_heads
        parallel = last.residual == "parallel"
        grouped = parallel and (few or not last.shared_norm)
        if few and not parallel:
            raise PretrainedError(
                f"Falcon's format requires num_kv_heads of 1 or num_heads={arch.num_heads} where branches are not parallel, but this model "
                f"has {arch.kv_heads}. Save it as native."
            )
        hf = super().to_hf(arch) | {
            "alibi": last.positions == "alibi",
            "bias": last.output_bias,
            "new_decoder_architecture": grouped,
            "parallel_attn": parallel,
            "multi_query": arch.kv_heads == 1,
            "num_kv_heads": arch.kv_heads,
            "num_ln_in_parallel_attn": (1 if last.shared_norm else 2) if grouped else None,
            "ffn_hidden_size": arch.intermediate_size,
        }
        return hf | ({"rope_parameters": rotary.write_rotary(last)} if last.positions == "rotary" else {})

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        last = arch.layers[-1]
        norms = "input_layernorm", "post_attention_layernorm"
        norms = ("ln_attn", "ln_mlp") if last.residual == "parallel" and not last.shared_norm else norms
        return (
            *tensor("decoder/embeddings/tokens", "@word_embeddings.weight"),
            *fused_block(arch, "@h.{}", "self_attention", *norms),
            *norm("decoder/final_norm", "@ln_f"),
            *tensor("next_token/table", "lm_head.weight"),
            *classifier(head),
        )


FAMILIES.register("falcon", FalconConfig)(Falcon())
