"""Sizes, keys of config.json and names of weights that ModernBERT and decoders of its blocks share."""

from __future__ import annotations

from typing import Any, Literal

from lm_research.common.documents import Object, Size
from lm_research.models.families import layer_kinds, rotary
from lm_research.models.families.common import ConfigField, ParamMapping, dense, norm, tensor
from lm_research.models.limits import Wavelength

FIELDS: tuple[ConfigField, ...] = (
    ConfigField("vocab_size", "vocab_size", 50368),
    ConfigField("hidden_size", "hidden_size", 768),
    ConfigField("intermediate_size", "intermediate_size", 1152),
    ConfigField("num_layers", "num_hidden_layers", 22),
    ConfigField("num_heads", "num_attention_heads", 12),
    ConfigField("activation", "hidden_activation", "gelu"),
    ConfigField("max_length", "max_position_embeddings", 8192),
    ConfigField("init_std", "initializer_range", 0.02),
    ConfigField("norm_epsilon", "norm_eps", 1e-5),
    ConfigField("norm_bias", "norm_bias", False),
    ConfigField("pad_id", "pad_token_id", 50283),
    ConfigField("output_bias", "attention_bias", False),
    ConfigField("attention_dropout_rate", "attention_dropout", 0.0),
    ConfigField("dropout_rate", "embedding_dropout", 0.0),
    ConfigField("mlp_bias", "mlp_bias", False),
    ConfigField("activation_dropout_rate", "mlp_dropout", 0.0),
    ConfigField("masked_bias", "decoder_bias", True),
    ConfigField("transform_bias", "classifier_bias", False),
    ConfigField("pooler_activation", "classifier_activation", "gelu"),
    ConfigField("classifier_dropout_rate", "classifier_dropout", 0.0),
    ConfigField("tied", "tie_word_embeddings", True),
)
OTHER_KEYS: dict[str, Any] = {
    "local_attention": Size,
    "layer_types": layer_kinds.KEYS["layer_types"],
    "global_attn_every_n_layers": Size,
    "global_rope_theta": Wavelength,
    "local_rope_theta": Wavelength,
    "rope_parameters": dict[Literal["full_attention", "sliding_attention"], Object],
    "rope_scaling": rotary.KEYS["rope_scaling"],
    "classifier_pooling": Literal["cls", "mean"],
    "sparse_prediction": bool,  # only changes which logits transformers returns along with a loss
}
# Weller et al. 2025, table 1: their encoders and decoders have the same sizes.
ETTIN = {
    "ettin_17m": dict(num_layers=7, hidden_size=256, num_heads=4, intermediate_size=384),
    "ettin_32m": dict(num_layers=10, hidden_size=384, num_heads=6, intermediate_size=576),
    "ettin_68m": dict(num_layers=19, hidden_size=512, num_heads=8, intermediate_size=768),
    "ettin_150m": dict(num_layers=22, hidden_size=768, num_heads=12, intermediate_size=1152),
    "ettin_400m": dict(num_layers=28, hidden_size=1024, num_heads=16, intermediate_size=2624),
    "ettin_1b": dict(num_layers=28, hidden_size=1792, num_heads=28, intermediate_size=3840),
}
# Kind of layer -> its rotary base, and the key of older files.
THETAS = {layer_kinds.FULL: (160000.0, "global_rope_theta"), layer_kinds.SLIDING: (10000.0, "local_rope_theta")}


def fused_attention(path: str, name: str) -> tuple[ParamMapping, ...]:
    """Map queries, keys and values that are stored in one tensor, one after the other."""
    parts = ("query", "key", "value")
    return tuple(
        weight
        for part, ours in enumerate(parts)
        for weight in dense(f"{path}/{ours}", name, part=part, parts=(1, 1, 1))
    )


def blocks_and_heads(stack: str, tokens: str, token_head: str, head: str) -> tuple[ParamMapping, ...]:
    """Map all but queries, keys and values.

    Args:
      stack: our name of the stack.
      tokens: our name of the token head.
      token_head: their name of the token head's dense layer and norm.
      head: the model's head.
    """
    ours, theirs = f"{stack}/layers", "@layers.{}"
    # A model without a head has no pooler, although files of one with a head have tensors of that name.
    pooler = "@pooler" if head == "none" else "head"
    return (
        *tensor(f"{stack}/embeddings/tokens", "@embeddings.tok_embeddings.weight"),
        *norm(f"{stack}/embeddings/norm", "@embeddings.norm"),
        *norm(f"{ours}/attention_norm", f"{theirs}.attn_norm"),
        *dense(f"{ours}/attention/output", f"{theirs}.attn.Wo", inputs=2),
        *norm(f"{ours}/feed_forward_norm", f"{theirs}.mlp_norm"),
        *dense(f"{ours}/feed_forward/gate", f"{theirs}.mlp.Wi", part=0, parts=(1, 1)),
        *dense(f"{ours}/feed_forward/up", f"{theirs}.mlp.Wi", part=1, parts=(1, 1)),
        *dense(f"{ours}/feed_forward/down", f"{theirs}.mlp.Wo"),
        *norm(f"{stack}/final_norm", "@final_norm"),
        *dense(f"{tokens}/dense", f"{token_head}.dense"),
        *norm(f"{tokens}/norm", f"{token_head}.norm"),
        *tensor(f"{tokens}/bias", "decoder.bias"),
        *tensor(f"{tokens}/table", "decoder.weight"),
        *dense("pooler/dense", f"{pooler}.dense"),
        *norm("pooler/norm", f"{pooler}.norm"),
        *dense("classifier", "classifier"),
    )
