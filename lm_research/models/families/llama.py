"""Llama and its relatives (Touvron et al. 2023, arXiv:2302.13971): rotary positions, RMSNorm, gated SiLU, shared keys.

Variants by `model.variant`: "llama", "mistral" (Jiang et al. 2023: a window), "qwen2" (Yang et al. 2024: biases on
queries, keys and values).
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Literal

from lm_research.common.documents import Count, Object, Size, short
from lm_research.config import ModelConfig
from lm_research.errors import ConfigError, PretrainedError, suggest
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.families.common import (
    Key,
    Weight,
    attention,
    check_others,
    from_config,
    given,
    matrix,
    read_keys,
    table,
    write_keys,
)
from lm_research.models.limits import STRETCHES, Wavelength

# Touvron et al. 2023, table 2 and the released weights; Grattafiori et al. 2024, table 3; Jiang et al. 2023, table 1;
# Yang et al. 2024, table 1.
SIZES = {
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
TRAITS = dict(
    causal=True, norm="pre", norm_kind="rms", positions="rotary", gated=True, pooling="last", pooler_activation=""
)
VARIANTS = {
    "llama": dict(qkv_bias=False, output_bias=False, mlp_bias=False, tied=False),
    "mistral": dict(qkv_bias=False, output_bias=False, mlp_bias=False, tied=False, window=4096),
    "qwen2": dict(qkv_bias=True, output_bias=False, mlp_bias=False, tied=False, rotary_theta=1e6),
}

MODEL_TYPES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}
CLASSES = {
    "ForCausalLM": "causal_lm",
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "span",
    "Model": "none",
}
KEYS = (
    Key("vocab_size", "vocab_size", 32000),
    Key("hidden_size", "hidden_size", 4096),
    Key("num_layers", "num_hidden_layers", 32),
    Key("num_heads", "num_attention_heads", 32),
    Key("intermediate_size", "intermediate_size", 11008),
    Key("activation", "hidden_act", "silu"),
    Key("attention_dropout_rate", "attention_dropout", 0.0),
    Key("max_length", "max_position_embeddings", 2048),
    Key("norm_epsilon", "rms_norm_eps", 1e-6),
    Key("init_std", "initializer_range", 0.02),
    Key("tied", "tie_word_embeddings", False),
    Key("pad_id", "pad_token_id", -1),
)
_NUMBERS = {name: Wavelength for names in STRETCHES.values() for name in names}
_ROPE = {"rope_theta": Wavelength, "rope_type": str, "type": str, "partial_rotary_factor": float, **_NUMBERS}
OTHERS = {
    "num_key_value_heads": Size, "head_dim": Size, "attention_bias": bool, "mlp_bias": bool, "use_sliding_window": bool,
    "sliding_window": Size, "max_window_layers": Count, "layer_types": list[Literal["full_attention", "sliding_attention"]],
    "rope_theta": Wavelength, "rope_parameters": Object, "rope_scaling": Object,
}  # fmt: skip
COPIES = (r"rotary_emb\.inv_freq$",)


def architecture(config: ModelConfig, vocab_size: int) -> Architecture:
    variant = config.variant or "llama"
    if variant not in VARIANTS:
        raise ConfigError(f"config.model.variant is {variant!r}. {suggest(variant, VARIANTS)}")
    return from_config(config, vocab_size, activation="silu", norm_epsilon=1e-6, **TRAITS, **VARIANTS[variant])


def from_hf(hf: Mapping[str, Any], names: Set[str]) -> Architecture:
    kind = hf["model_type"]
    check_others(hf, OTHERS)
    fields = read_keys(hf, KEYS)
    fields["num_kv_heads"] = hf.get("num_key_value_heads") or (8 if kind == "mistral" else fields["num_heads"])
    fields["head_size"] = hf.get("head_dim") or 0
    fields["qkv_bias"] = given(hf, "attention_bias", False) if kind == "llama" else kind == "qwen2"
    fields["output_bias"] = given(hf, "attention_bias", False) if kind == "llama" else False
    fields["mlp_bias"] = given(hf, "mlp_bias", False)
    windowed = kind == "mistral" or (kind == "qwen2" and hf.get("use_sliding_window", False))
    window = (hf.get("sliding_window", 4096) or 0) if windowed else 0
    first = _first_windowed(hf, fields["num_layers"]) if window and kind == "qwen2" else 0
    return from_flat(**fields, **_rope(hf, fields["max_length"]), window=window, window_from=first, **TRAITS)


def _rope(hf: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    """Version 5 files say `rope_parameters`; older ones `rope_theta` and `rope_scaling`, with `type` or `rope_type`."""
    name = "rope_parameters" if hf.get("rope_parameters") else "rope_scaling"
    said = {key: value for key, value in (hf.get(name) or {}).items() if value is not None}
    check_others(said, _ROPE, f"config.json: {name}")
    theta = float(said.get("rope_theta") or hf.get("rope_theta") or 10000.0)
    kind = said.get("rope_type", said.get("type", "default"))
    nested = next((key for key, value in said.items() if isinstance(value, dict)), None)  # blocks of several kinds
    if nested or kind not in ("default", *STRETCHES) or said.get("partial_rotary_factor", 1.0) != 1.0:
        raise PretrainedError(
            f"config.json: {name} is {short(said)}, rotary positions that are not supported (supported: rope_type "
            f"default, {', '.join(STRETCHES)} for whole heads and all blocks)."
        )
    if kind == "default":
        return dict(rotary_theta=theta, rotary_scaling=())
    said = {"original_max_position_embeddings": max_length, **said}
    numbers = sorted((key, float(said[key])) for key in STRETCHES[kind] if key in said)
    return dict(rotary_theta=theta, rotary_scaling=(("type", kind), *numbers))


def _first_windowed(hf: Mapping[str, Any], num_layers: int) -> int:
    """Qwen2's blocks see everything up to this one, and a window from it on."""
    kinds = hf.get("layer_types")
    if not kinds:
        return min(given(hf, "max_window_layers", 28), num_layers)
    if len(kinds) != num_layers:
        raise PretrainedError(f"config.json: layer_types has {len(kinds)} entries, but there are {num_layers} blocks.")
    first = kinds.index("sliding_attention") if "sliding_attention" in kinds else num_layers
    if "full_attention" in kinds[first:]:
        raise PretrainedError(
            "config.json: layer_types returns to full_attention after sliding_attention; not supported."
        )
    return first


def variant_of(arch: Architecture) -> str:
    """The model type whose files can hold it."""
    last = arch.layers[-1]
    if last.query_bias and not last.output_bias:
        return "qwen2"
    return "mistral" if last.window else "llama"


def to_hf(arch: Architecture) -> dict[str, Any]:
    last = arch.layers[-1]
    scaling = dict(last.rotary_scaling)
    rope = {"rope_type": scaling.pop("type", "default"), "rope_theta": last.rotary_theta, **scaling}
    kind = variant_of(arch)
    hf = write_keys(arch, KEYS) | {
        "model_type": kind, "num_key_value_heads": arch.kv_heads, "head_dim": arch.head_width, "rope_parameters": rope,
    }  # fmt: skip
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


def prefix(arch: Architecture, head: str) -> str:
    if head == "none":
        return ""
    return "transformer." if head == "span" and variant_of(arch) == "llama" else "model."


def weights(arch: Architecture, head: str) -> tuple[Weight, ...]:
    ours, theirs = "decoder/layers", "@layers.{}"
    return (
        *table("decoder/embeddings/tokens", "@embed_tokens.weight"),
        *attention(f"{ours}/attention", f"{theirs}.self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),
        *table(f"{ours}/attention_norm/scale", f"{theirs}.input_layernorm.weight"),
        *matrix(f"{ours}/feed_forward/gate", f"{theirs}.mlp.gate_proj"),
        *matrix(f"{ours}/feed_forward/up", f"{theirs}.mlp.up_proj"),
        *matrix(f"{ours}/feed_forward/down", f"{theirs}.mlp.down_proj"),
        *table(f"{ours}/feed_forward_norm/scale", f"{theirs}.post_attention_layernorm.weight"),
        *table("decoder/final_norm/scale", "@norm.weight"),
        *table("next_token/table", "lm_head.weight"),
        *matrix("classifier", "qa_outputs" if head == "span" else "score"),
    )
