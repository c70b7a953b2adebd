"""Names of weights of Llama, and of decoders that share them."""

from __future__ import annotations

from lm_research.models.families.common import ParamMapping, attention, dense, tensor


def decoder_weights(classifier: str) -> tuple[ParamMapping, ...]:
    """Map embeddings, blocks and heads; `classifier` is the name of the classification layer."""
    ours, theirs = "decoder/layers", "@layers.{}"
    return (
        *tensor("decoder/embeddings/tokens", "@embed_tokens.weight"),
        *attention(f"{ours}/attention", f"{theirs}.self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),
        *tensor(f"{ours}/attention/query_norm/scale", f"{theirs}.self_attn.q_norm.weight"),
        *tensor(f"{ours}/attention/key_norm/scale", f"{theirs}.self_attn.k_norm.weight"),
        *tensor(f"{ours}/attention_norm/scale", f"{theirs}.input_layernorm.weight"),
        *dense(f"{ours}/feed_forward/gate", f"{theirs}.mlp.gate_proj"),
        *dense(f"{ours}/feed_forward/up", f"{theirs}.mlp.up_proj"),
        *dense(f"{ours}/feed_forward/down", f"{theirs}.mlp.down_proj"),
        *tensor(f"{ours}/feed_forward_norm/scale", f"{theirs}.post_attention_layernorm.weight"),
        *tensor("decoder/final_norm/scale", "@norm.weight"),
        *tensor("next_token/table", "lm_head.weight"),
        *dense("classifier", classifier),
    )
