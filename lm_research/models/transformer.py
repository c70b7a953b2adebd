"""Embeddings, Block, and the stacks of blocks: Encoder (sees both ways) and Decoder (sees the past).

Legend: B batch, L length, D model width, F feed-forward width, V vocabulary, N layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lm_research.models.architecture import Architecture
from lm_research.models.attention import SelfAttention, attention_bias
from lm_research.models.layers import Dense, LayerNorm, activation, dropout, over_rows, split_key, weight
from lm_research.parallel.rules import constrain


class Embeddings(nnx.Module):
    """Token + learned position (+ type) embeddings, normalised first where the blocks normalise last."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        self.tokens = weight(rngs, (arch.vocab_size, arch.hidden_size), ("vocab", "embed"), arch)
        self.positions = weight(rngs, (arch.max_length, arch.hidden_size), (None, "embed"), arch)
        if arch.num_types:
            self.types = weight(rngs, (arch.num_types, arch.hidden_size), (None, "embed"), arch)
        if arch.norm == "post":
            self.norm = LayerNorm(arch)
        self.arch = arch

    def __call__(
        self,
        tokens_BL: jax.Array,
        positions_BL: jax.Array | None,
        types_BL: jax.Array | None,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        length = tokens_BL.shape[1]
        # Rows whole on each device before they are looked up: otherwise XLA moves the result around instead.
        x_BLD = jnp.take(constrain(self.tokens[...], "vocab", None), tokens_BL, axis=0)
        if positions_BL is None:
            x_BLD += over_rows(self.positions[:length], x_BLD.shape)
        else:
            x_BLD += jnp.take(constrain(self.positions[...], None, None), positions_BL, axis=0)
        if self.arch.num_types:
            # A product with one-hot rows: its gradient is a small matrix product instead of a scatter.
            one_hot = jax.nn.one_hot(0 if types_BL is None else types_BL, self.arch.num_types, dtype=jnp.float32)
            x_BLD += one_hot @ self.types[...]
        if self.arch.norm == "post":
            x_BLD = self.norm(x_BLD)
        x_BLD = constrain(x_BLD.astype(self.arch.compute_dtype), "batch", None, None)
        return dropout(x_BLD, self.arch.dropout_rate, dropout_key)


class FeedForward(nnx.Module):
    """Two dense layers with an activation between them, D -> F -> D."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        width, inner = [(arch.hidden_size, "embed")], [(arch.intermediate_size, "mlp")]
        self.up = Dense(width, inner, arch, rngs)
        self.down = Dense(inner, width, arch, rngs, std=arch.residual_init_std)
        self.activation = arch.activation

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        inner_BLF = constrain(activation(self.activation, self.up(x_BLD)), "batch", None, "act_mlp")
        return self.down(inner_BLF)


class Block(nnx.Module):
    """Self-attention and feed-forward, each with dropout, a residual sum and a layer norm before or after it."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        self.attention = SelfAttention(arch, rngs)
        self.attention_norm = LayerNorm(arch)
        self.feed_forward = FeedForward(arch, rngs)
        self.feed_forward_norm = LayerNorm(arch)
        self.arch = arch

    def __call__(self, x_BLD: jax.Array, bias_B1LL: jax.Array, key: jax.Array | None) -> jax.Array:
        probabilities_key, attention_key, feed_forward_key = split_key(key, 3)
        attention = functools.partial(self.attention, bias_B1LL=bias_B1LL, dropout_key=probabilities_key)
        x_BLD = self._residual(x_BLD, attention, self.attention_norm, attention_key)
        return self._residual(x_BLD, self.feed_forward, self.feed_forward_norm, feed_forward_key)

    def _residual(
        self, x_BLD: jax.Array, branch: Callable[[jax.Array], jax.Array], norm: LayerNorm, key: jax.Array | None
    ) -> jax.Array:
        if self.arch.norm == "post":
            x_BLD = norm(x_BLD + dropout(branch(x_BLD), self.arch.dropout_rate, key))
        else:
            x_BLD = x_BLD + dropout(branch(norm(x_BLD)), self.arch.dropout_rate, key)
        return constrain(x_BLD, "batch", None, None)


REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Transformer(nnx.Module):
    """Embeddings and N blocks whose parameters are stacked along a leading axis "layers"."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        self.embeddings = Embeddings(arch, rngs)
        self.layers = nnx.vmap(lambda block_rngs: Block(arch, block_rngs))(rngs.split(arch.num_layers))
        if arch.norm == "pre":
            self.final_norm = LayerNorm(arch)
        self.arch = arch

    def __call__(
        self,
        tokens_BL: jax.Array,
        segments_BL: jax.Array | None = None,
        positions_BL: jax.Array | None = None,
        types_BL: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Final hidden states [B, L, D].

        Args:
          tokens_BL: token ids.
          segments_BL: 0 = padding, 1.. = packed document; attention stays inside a segment. None: one full row.
          positions_BL: position ids; None counts from 0 along the row.
          types_BL: token types (BERT's sentence A / B); None is all 0.
          dropout_key: a jax.random key; None applies no dropout (evaluation).
        """
        embeddings_key, layers_key = split_key(dropout_key, 2)
        x_BLD = self.embeddings(tokens_BL, positions_BL, types_BL, embeddings_key)
        if segments_BL is None:
            segments_BL = jnp.ones_like(tokens_BL)
        x_BLD = self._run_layers(x_BLD, attention_bias(segments_BL, self.arch.causal), layers_key)
        return self.final_norm(x_BLD) if self.arch.norm == "pre" else x_BLD

    def _run_layers(self, x_BLD: jax.Array, bias_B1LL: jax.Array, key: jax.Array | None) -> jax.Array:
        graphdef, stacked = nnx.split(self.layers)
        keys = None if key is None else jax.random.split(key, self.arch.num_layers)

        def body(x_BLD: jax.Array, layer: tuple) -> tuple[jax.Array, None]:
            params, layer_key = layer
            return nnx.merge(graphdef, params)(x_BLD, bias_B1LL, layer_key), None

        if self.arch.remat != "none":
            body = jax.checkpoint(body, policy=REMAT_POLICIES[self.arch.remat], prevent_cse=not self.arch.scan_layers)
        unroll = 1 if self.arch.scan_layers else self.arch.num_layers
        x_BLD, _ = jax.lax.scan(body, x_BLD, (stacked, keys), unroll=unroll)
        return x_BLD


class Encoder(Transformer):
    """Bidirectional: every position sees its whole segment."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        assert not arch.causal
        super().__init__(arch, rngs)


class Decoder(Transformer):
    """Causal: every position sees itself and earlier ones of its segment."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        assert arch.causal
        super().__init__(arch, rngs)


class Pooler(nnx.Module):
    """tanh of a dense layer over the first position: BERT's summary of a row."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        self.dense = Dense([(arch.hidden_size, "embed")], [(arch.hidden_size, None)], arch, rngs)

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        return jnp.tanh(self.dense(x_BLD[:, 0]))
