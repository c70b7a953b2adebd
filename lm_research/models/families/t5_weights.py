"""Names of weights of T5."""

from __future__ import annotations

from lm_research.models.architecture import Architecture
from lm_research.models.families.common import ParamMapping, attention, dense, tensor


def weights(arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
    """Map the weights of an architecture with a head."""
    outer = {"classification": "classification_head.out_proj", "span": "qa_outputs"}.get(head, "classifier")
    shared, encoder, decoder = "@shared.weight", "@encoder.embed_tokens.weight", "@decoder.embed_tokens.weight"
    if arch.encoder is None:
        tables = tensor("encoder/embeddings/tokens", shared, decoder, preferred=(encoder,))
    elif arch.shared_tokens:
        tables = tensor("encoder/embeddings/tokens", shared, encoder, decoder)
    else:  # a tied output is stored as the shared table
        tables = tensor("encoder/embeddings/tokens", encoder, shared, decoder)
        tables += tensor("decoder/embeddings/tokens", decoder, shared, encoder, copies=(shared,))
    return (
        *tables,
        *_stack("encoder", arch.layers[0].gated),
        *_stack("decoder", arch.layers[0].gated),
        *tensor("next_token/table", "lm_head.weight", shared, encoder, decoder),
        *dense("pooler/dense", "classification_head.dense"),
        *dense("classifier", outer),
    )


def _stack(name: str, gated: bool) -> tuple[ParamMapping, ...]:
    """Map the weights of the "encoder" or the "decoder"."""
    ours, theirs = f"{name}/layers", f"@{name}.block.{{}}.layer"
    feed_forward = f"{theirs}.{1 if name == 'encoder' else 2}"
    inner = f"{feed_forward}.DenseReluDense"
    first = f"@{name}.block.0.layer.0.SelfAttention"
    return (
        *tensor(f"{name}/relative_bias", f"{first}.relative_attention_bias.weight"),
        *tensor(f"{ours}/attention/relative_bias", f"{theirs}.0.SelfAttention.relative_attention_bias.weight"),
        *attention(f"{ours}/attention", f"{theirs}.0.SelfAttention", "q", "k", "v", "o"),
        *tensor(f"{ours}/attention_norm/scale", f"{theirs}.0.layer_norm.weight"),
        *attention(f"{ours}/cross_attention", f"{theirs}.1.EncDecAttention", "q", "k", "v", "o"),
        *tensor(f"{ours}/cross_attention_norm/scale", f"{theirs}.1.layer_norm.weight"),
        # A layer without a gate has `wi`; a gated one has `wi_0`, which is activated, and `wi_1`.
        *dense(f"{ours}/feed_forward/gate", f"{inner}.wi_0"),
        *dense(f"{ours}/feed_forward/up", f"{inner}.{'wi_1' if gated else 'wi'}"),
        *dense(f"{ours}/feed_forward/down", f"{inner}.wo"),
        *tensor(f"{ours}/feed_forward_norm/scale", f"{feed_forward}.layer_norm.weight"),
        *tensor(f"{name}/final_norm/scale", f"@{name}.final_layer_norm.weight"),
    )
