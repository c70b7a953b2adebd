"""Whole models: a stack and the heads that predict from it.

A model that predicts tokens does not return logits. It returns `Projection`s, the hidden states and the table whose
product the logits are, so that the loss can take the product piece by piece (objectives/cross_entropy.py);
`Projection.logits` gives them whole to whoever wants them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm_research.models.architecture import Architecture
from lm_research.models.layers import Dense, LayerNorm, activation, zeros
from lm_research.models.transformer import Decoder, Encoder, Pooler


class Projection(NamedTuple):
    """Hidden states [B, M, D], token table [V, D] and bias [V] or None: logits = hidden table^T + bias."""

    hidden_BMD: jax.Array
    table_VD: jax.Array
    bias_V: jax.Array | None

    def logits(self) -> jax.Array:
        """[B, M, V] in float32."""
        table = self.table_VD.astype(self.hidden_BMD.dtype)
        logits = jnp.einsum("BMD,VD->BMV", self.hidden_BMD, table, preferred_element_type=jnp.float32)
        return logits if self.bias_V is None else logits + self.bias_V


class MaskedLMHead(nnx.Module):
    """BERT's token head: dense, activation, layer norm, then the tied token table with a bias of its own."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        self.dense = Dense([(arch.hidden_size, "embed")], [(arch.hidden_size, None)], arch, rngs)
        self.norm = LayerNorm(arch)
        self.bias = zeros((arch.vocab_size,), ("vocab",))
        self.activation = arch.activation

    def __call__(self, hidden_BMD: jax.Array, table_VD: jax.Array) -> Projection:
        hidden_BMD = self.norm(activation(self.activation, self.dense(hidden_BMD)))
        return Projection(hidden_BMD, table_VD, self.bias[...])


class PretrainingEncoder(nnx.Module):
    """An encoder with the heads BERT is pre-trained with: masked tokens, and next sentence over a pooler."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        self.encoder = Encoder(arch, rngs)
        self.masked_lm = MaskedLMHead(arch, rngs)
        self.pooler = Pooler(arch, rngs)
        self.next_sentence = Dense([(arch.hidden_size, "embed")], [(2, None)], arch, rngs)

    def predict_tokens(self, x_BLD: jax.Array, positions_BM: jax.Array) -> Projection:
        """Projection of the states at the given positions only; the rest would be computed for nothing."""
        # A product with one-hot rows instead of a gather: same values, and a gradient without a scatter.
        picked = jax.nn.one_hot(positions_BM, x_BLD.shape[1], dtype=x_BLD.dtype)
        hidden_BMD = jnp.einsum("BML,BLD->BMD", picked, x_BLD)
        return self.masked_lm(hidden_BMD, self.encoder.embeddings.tokens[...])

    def predict_next_sentence(self, x_BLD: jax.Array) -> jax.Array:
        """Logits [B, 2] in float32: 0 = the second segment follows the first, 1 = it was drawn at random."""
        return self.next_sentence(self.pooler(x_BLD)).astype(jnp.float32)


class CausalLM(nnx.Module):
    """A decoder that predicts the next token through its tied token table."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        self.decoder = Decoder(arch, rngs)

    def predict_tokens(self, x_BLD: jax.Array) -> Projection:
        return Projection(x_BLD, self.decoder.embeddings.tokens[...], None)
