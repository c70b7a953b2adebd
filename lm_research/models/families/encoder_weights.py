"""Names of weights of BERT, and of all encoders that share them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from lm_research.models.architecture import Architecture
from lm_research.models.families.common import ParamMapping, attention, dense, norm, tensor


def embeddings(theirs: str = "@embeddings") -> tuple[ParamMapping, ...]:
    """Map the embedding tables and their norm."""
    return (
        *tensor("encoder/embeddings/tokens", f"{theirs}.word_embeddings.weight"),
        *tensor("encoder/embeddings/positions", f"{theirs}.position_embeddings.weight"),
        *tensor("encoder/embeddings/types", f"{theirs}.token_type_embeddings.weight"),
        *norm("encoder/embeddings/norm", f"{theirs}.LayerNorm"),
    )


# Names of the norms of a layer's attention and feed-forward branch, below the layer.
POST_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")


def stack(attention_norm: str, feed_forward_norm: str, final_norm: str = "") -> tuple[ParamMapping, ...]:
    """Map embeddings and blocks, with the names of their norms."""
    ours, projections = "encoder/layers", ("self.query", "self.key", "self.value", "output.dense")
    layer = "@encoder.layer.{}"
    return (
        *embeddings(),
        *attention(f"{ours}/attention", f"{layer}.attention", *projections),
        *norm(f"{ours}/attention_norm", f"{layer}.{attention_norm}"),
        *attention(f"{ours}/cross_attention", f"{layer}.crossattention", *projections),
        *norm(f"{ours}/cross_attention_norm", f"{layer}.cross{attention_norm}"),
        *dense(f"{ours}/feed_forward/up", f"{layer}.intermediate.dense"),
        *dense(f"{ours}/feed_forward/down", f"{layer}.output.dense"),
        *norm(f"{ours}/feed_forward_norm", f"{layer}.{feed_forward_norm}"),
        *norm("encoder/final_norm", final_norm),
    )


def output_table(bias: str, decoder: str, arch: Architecture) -> tuple[ParamMapping, ...]:
    """Map bias and table of the masked-token head. transformers uses the decoder's bias; untied models store both biases."""
    unused, used = f"{bias}.bias", f"{decoder}.bias"
    if arch.tied:
        biases = tensor("masked_lm/bias", unused, preferred=(used,))
    else:
        biases = tensor("masked_lm/bias", used, unused, copies=(unused,), kept=(unused,))
    return (*biases, *tensor("masked_lm/table", f"{decoder}.weight"))


def with_paths(weights: Iterable[ParamMapping], arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
    """Weights of an encoder and its masked-token head, with the paths they have in a causal model, or one that predicts next tokens."""
    moves = {"encoder": "decoder"} if arch.causal else {}
    moves |= {"masked_lm": "next_token"} if head in ("causal_lm", "seq2seq_lm") else {}

    def move(weight: ParamMapping) -> ParamMapping:
        part, _, rest = weight.path.partition("/")
        return dataclasses.replace(weight, path=f"{moves.get(part, part)}/{rest}") if part in moves else weight

    return tuple(map(move, weights))


def replaced(weights: Iterable[ParamMapping], others: Iterable[ParamMapping]) -> tuple[ParamMapping, ...]:
    """The weights, with those of the same path in `others` instead, and the rest of these added."""
    return tuple(({one.path: one for one in weights} | {one.path: one for one in others}).values())
