"""Llama, Mistral and Qwen2 (Touvron et al. 2023, arXiv:2302.13971): rotary positions, RMSNorm, gated SiLU, grouped-query attention.

Mistral (Jiang et al. 2023) has a window, Qwen2 (Yang et al. 2024) biases on queries, keys and values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import Any, Literal

from typing_extensions import override

from lm_research.common.documents import Count, Size
from lm_research.config import ModelConfig, key
from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.families import rotary
from lm_research.models.families.base import FAMILIES, Family
from lm_research.models.families.common import FIX, ConfigField, ParamMapping, given, write_keys
from lm_research.models.families.decoder_weights import decoder_weights

VARIANTS: dict[str, dict[str, Any]] = {
    "llama": dict(qkv_bias=False, output_bias=False, mlp_bias=False, tied=False),
    "mistral": dict(qkv_bias=False, output_bias=False, mlp_bias=False, tied=False, window=4096),
    "qwen2": dict(qkv_bias=True, output_bias=False, mlp_bias=False, tied=False, rotary_theta=1e6),
}


@dataclasses.dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """Model section of Llama."""

    variant: str | None = key(None, "Architecture of the Llama lineage; None is llama.", choices=tuple(VARIANTS))


class Llama(Family):
    """A decoder with rotary positions and gated layers: Llama, Mistral and Qwen2 (Touvron et al. 2023)."""

    # Touvron et al. 2023, table 2 and the released weights; Grattafiori et al. 2024, table 3; Jiang et al. 2023, table 1;
    # Yang et al. 2024, table 1.
    sizes = {
        "llama_7b": dict(num_layers=32, hidden_size=4096, num_heads=32, intermediate_size=11008),
        "llama_13b": dict(num_layers=40, hidden_size=5120, num_heads=40, intermediate_size=13824),
        "llama3_8b": dict(num_layers=32, hidden_size=4096, num_heads=32, num_kv_heads=8, intermediate_size=14336),
        "mistral_7b": dict(
            variant="mistral", num_layers=32, hidden_size=4096, num_heads=32, num_kv_heads=8, intermediate_size=14336
        ),
        "qwen2_7b": dict(
            variant="qwen2", num_layers=28, hidden_size=3584, num_heads=28, num_kv_heads=4, intermediate_size=18944
        ),
    }
    traits = dict(
        causal=True, norm="pre", norm_kind="rms", positions="rotary", gated=True, pooling="last", pooler_activation=""
    )

    model_types = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}
    classes = {
        "ForCausalLM": "causal_lm",
        "ForSequenceClassification": "classification",
        "ForTokenClassification": "token_classification",
        "ForQuestionAnswering": "span",
        "Model": "none",
    }
    config_fields = (
        ConfigField("vocab_size", "vocab_size", 32000),
        ConfigField("hidden_size", "hidden_size", 4096),
        ConfigField("num_layers", "num_hidden_layers", 32),
        ConfigField("num_heads", "num_attention_heads", 32),
        ConfigField("intermediate_size", "intermediate_size", 11008),
        ConfigField("activation", "hidden_act", "silu"),
        ConfigField("attention_dropout_rate", "attention_dropout", 0.0),
        ConfigField("max_length", "max_position_embeddings", 2048),
        ConfigField("norm_epsilon", "rms_norm_eps", 1e-6),
        ConfigField("init_std", "initializer_range", 0.02),
        ConfigField("tied", "tie_word_embeddings", False),
        ConfigField("pad_id", "pad_token_id", -1),
    )
    other_keys = {
        "num_key_value_heads": Size,
        "head_dim": Size,
        "attention_bias": bool,
        "mlp_bias": bool,
        "use_sliding_window": bool,
        "sliding_window": Size,
        "max_window_layers": Count,
        "layer_types": list[Literal["full_attention", "sliding_attention"]],
        **rotary.KEYS,
    }

    base_prefix = "model."
    redundant = (r"rotary_emb\.inv_freq$",)

    @override
    def run_fields(self, config: LlamaConfig) -> dict[str, Any]:
        return dict(activation="silu", norm_epsilon=1e-6) | VARIANTS[config.variant or "llama"]

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        kind, fields = hf["model_type"], self.read(hf)
        fields["num_kv_heads"] = hf.get("num_key_value_heads") or (8 if kind == "mistral" else fields["num_heads"])
        fields["head_size"] = hf.get("head_dim") or 0
        fields["qkv_bias"] = given(hf, "attention_bias", False) if kind == "llama" else kind == "qwen2"
        fields["output_bias"] = given(hf, "attention_bias", False) if kind == "llama" else False
        fields["mlp_bias"] = given(hf, "mlp_bias", False)
        windowed = kind == "mistral" or (kind == "qwen2" and hf.get("use_sliding_window", False))
        window = (hf.get("sliding_window", 4096) or 0) if windowed else 0
        first = _first_windowed(hf, fields["num_layers"]) if window and kind == "qwen2" else 0
        fields |= rotary.read_rotary(hf, fields["max_length"])
        return from_flat(**fields, window=window, window_from=first, **self.traits)

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        last = arch.layers[-1]
        kind = variant_of(arch)
        hf = write_keys(arch, self.config_fields) | {
            "model_type": kind,
            "num_key_value_heads": arch.kv_heads,
            "head_dim": arch.head_width,
            "rope_parameters": rotary.write_rotary(last),
        }
        if arch.pad_id < 0:
            del hf["pad_token_id"]
        if last.window:
            hf["sliding_window"] = last.window
        if kind == "qwen2" and last.window:
            first = [spec.attention for spec in arch.layer_specs].index("window")
            hf |= {"use_sliding_window": True, "max_window_layers": first}
        if kind == "llama":
            hf |= {"attention_bias": last.query_bias, "mlp_bias": last.mlp_bias}
        return hf

    @override
    def prefix(self, arch: Architecture, head: str, kind: str) -> str:
        if head == "span" and (kind or variant_of(arch)) != "mistral":
            return "transformer."
        return super().prefix(arch, head, kind)

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        return decoder_weights("qa_outputs" if head == "span" else "score")


def _first_windowed(hf: Mapping[str, Any], num_layers: int) -> int:
    """The first of Qwen2's layers that has a window; the earlier ones have full attention."""
    kinds = hf.get("layer_types")
    if not kinds:
        return min(given(hf, "max_window_layers", 28), num_layers)
    if len(kinds) != num_layers:
        raise PretrainedError(
            f"config.json: layer_types has {len(kinds)} entries, but num_hidden_layers is {num_layers}; they must be equal. {FIX}"
        )
    first = kinds.index("sliding_attention") if "sliding_attention" in kinds else num_layers
    if "full_attention" in kinds[first:]:
        raise PretrainedError(
            "config.json: layer_types has full_attention after sliding_attention, which is not supported: only the last layers can have windows."
        )
    return first


def variant_of(arch: Architecture) -> str:
    """The model type that an architecture is stored as."""
    last = arch.layers[-1]
    if last.query_bias and not last.output_bias:
        return "qwen2"
    return "mistral" if last.window else "llama"


FAMILIES.register("llama", LlamaConfig)(Llama())
