"""Weights of BERT and of all encoders that kept its names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from lm_research.models.architecture import Architecture
from lm_research.models.families.common import ParamMapping, attention, dense, norm, tensor


def embeddings(theirs: str = "@embeddings") -> tuple[ParamMapping, ...]:
    """Tables and norm of BERT's names."""
    return (
        *tensor("encoder/embeddings/tokens", f"{theirs}.word_embeddings.weight"),
        *tensor("encoder/embeddings/positions", f"{theirs}.position_embeddings.weight"),
        *tensor("encoder/embeddings/types", f"{theirs}.token_type_embeddings.weight"),
        *norm("encoder/embeddings/norm", f"{theirs}.LayerNorm"),
    )


def stack(layer: str = "@encoder.layer.{}") -> tuple[ParamMapping, ...]:
    """Embeddings and blocks."""
    ours, projections = "encoder/layers", ("self.query", "self.key", "self.value", "output.dense")
    return (
        *embeddings(),
        *attention(f"{ours}/attention", f"{layer}.attention", *projections),
        *norm(f"{ours}/attention_norm", f"{layer}.attention.output.LayerNorm"),
        *attention(f"{ours}/cross_attention", f"{layer}.crossattention", *projections),
        *norm(f"{ours}/cross_attention_norm", f"{layer}.crossattention.output.LayerNorm"),
        *dense(f"{ours}/feed_forward/up", f"{layer}.intermediate.dense"),
        *dense(f"{ours}/feed_forward/down", f"{layer}.output.dense"),
        *norm(f"{ours}/feed_forward_norm", f"{layer}.output.LayerNorm"),
    )


def output_table(bias: str, decoder: str, arch: Architecture) -> tuple[ParamMapping, ...]:
    """Bias and table of the masked-token head. The decoder's bias is the one used; untied, both are stored."""
    one, used = f"{bias}.bias", f"{decoder}.bias"
    if arch.tied:
        biases = tensor("masked_lm/bias", one, preferred=(used,))
    else:
        biases = tensor("masked_lm/bias", used, one, copies=(one,), kept=(one,))
    return (*biases, *tensor("masked_lm/table", f"{decoder}.weight"))


def placed(found: Iterable[ParamMapping], arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
    """Weights of an encoder and of its masked-token head by the paths they have where it is a decoder, or predicts the next token."""
    moves = {"encoder": "decoder"} if arch.causal else {}
    moves |= {"masked_lm": "next_token"} if head in ("causal_lm", "seq2seq_lm") else {}

    def move(weight: ParamMapping) -> ParamMapping:
        part, _, rest = weight.path.partition("/")
        return dataclasses.replace(weight, path=f"{moves.get(part, part)}/{rest}") if part in moves else weight

    return tuple(map(move, found))
