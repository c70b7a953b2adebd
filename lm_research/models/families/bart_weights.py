"""Names of weights of BART, and of the families that share them."""

from __future__ import annotations

from lm_research.models.architecture import Architecture
from lm_research.models.families.common import ParamMapping, attention, dense, norm, tensor


def weights(arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
    """Map the weights of an architecture with a head."""
    classifier = "qa_outputs" if head == "span" else "classification_head.out_proj"
    shared, encoder, decoder = "@shared.weight", "@encoder.embed_tokens.weight", "@decoder.embed_tokens.weight"
    output = ("lm_head.weight",) if head == "seq2seq_lm" else ()
    if arch.encoder is None:  # files with both stacks may have one shared table
        tables = tensor("decoder/embeddings/tokens", decoder, shared, encoder)
    elif arch.shared_tokens:
        tables = tensor(
            "encoder/embeddings/tokens", shared, encoder, decoder, copies=() if arch.tied else (encoder, decoder)
        )
    else:  # each stack has its own; files of untied models also have a shared table, which is not used
        tables = tensor("encoder/embeddings/tokens", encoder, shared, decoder, copies=(shared,), kept=(shared,))
        tables += tensor("decoder/embeddings/tokens", decoder, shared, encoder, copies=output if arch.tied else ())
    return (
        *tables,
        *stack("encoder"),
        *stack("decoder"),
        *tensor("next_token/bias", "final_logits_bias", leading=True),
        *tensor("next_token/table", "lm_head.weight", shared, decoder, encoder),
        *dense("pooler/dense", "classification_head.dense"),
        *dense("classifier", classifier),
    )


def stack(name: str, module: str | None = None) -> tuple[ParamMapping, ...]:
    """Map a stack without its token table; `module` is the prefix of its names, that of `name` by default."""
    module = f"@{name}." if module is None else module
    ours, theirs = f"{name}/layers", f"{module}layers.{{}}"
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    return (
        *tensor(f"{name}/embeddings/positions", f"{module}embed_positions.weight"),
        *norm(f"{name}/embeddings/norm", f"{module}layernorm_embedding"),
        *attention(f"{ours}/attention", f"{theirs}.self_attn", *projections),
        *norm(f"{ours}/attention_norm", f"{theirs}.self_attn_layer_norm"),
        *attention(f"{ours}/cross_attention", f"{theirs}.encoder_attn", *projections),
        *norm(f"{ours}/cross_attention_norm", f"{theirs}.encoder_attn_layer_norm"),
        *dense(f"{ours}/feed_forward/up", f"{theirs}.fc1"),
        *dense(f"{ours}/feed_forward/down", f"{theirs}.fc2"),
        *norm(f"{ours}/feed_forward_norm", f"{theirs}.final_layer_norm"),
        *norm(f"{name}/final_norm", f"{module}layer_norm"),
    )
