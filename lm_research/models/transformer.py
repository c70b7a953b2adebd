"""Embeddings, Block, and the stacks of blocks: Encoder (sees both ways) and Decoder (sees the past, and an encoder).

Legend: B batch, L length, S length of the encoder's rows, D model width, E embedding width, F feed-forward width,
V vocabulary, N layers, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm_research.models.architecture import Architecture
from lm_research.models.attention.cache import LayerCache
from lm_research.models.attention.mask import AttentionMask, attention_bias
from lm_research.models.attention.module import Attention, in_kernels
from lm_research.models.layers import Dense, activation, dropout, is_few, norm, over_rows, split_key, weight
from lm_research.models.positions import distance_table, relative_bias, sinusoidal
from lm_research.parallel.rules import constrain, length_parts


class EncoderOutput(NamedTuple):
    """What a decoder reads of its encoder: final states [B, S, D], mapped to its own width if need be, their segments [B, S], its token table [V, E]."""

    x_BSD: jax.Array
    segments_BS: jax.Array
    table_VE: jax.Array


class StackOutputs(NamedTuple):
    """What a stack went through: the input of each block and the final states, and each block's attention.

    hidden_states: N + 1 arrays [B, L, D]; attentions and cross_attentions: N arrays [B, H, L, S].
    """

    hidden_states: tuple[jax.Array, ...]
    attentions: tuple[jax.Array, ...]
    cross_attentions: tuple[jax.Array, ...]


class Embeddings(nnx.Module):
    """Token + position (+ type) embeddings, normalised and projected to D where the architecture says so."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        width = arch.embedding_width
        if arch.has_tokens:  # otherwise the encoder's table serves both
            self.tokens = weight(rngs, (arch.vocab_size, width), ("vocab", "embed"), arch)
        if arch.positions == "learned":
            rows = arch.max_length + arch.position_offset
            self.positions = weight(rngs, (rows, width), (None, "embed"), arch)
        if arch.num_types:
            self.types = weight(rngs, (arch.num_types, width), (None, "embed"), arch)
        if arch.embedding_norm:
            self.norm = norm(arch, width)
        if arch.embedding_projection:
            self.projection = Dense([(width, None)], [(arch.hidden_size, "embed")], arch, rngs)
        self.arch = arch

    def __call__(
        self,
        tokens_BL: jax.Array,
        positions_BL: jax.Array | None,
        types_BL: jax.Array | None,
        dropout_key: jax.Array | None,
        table_VE: jax.Array | None = None,
    ) -> jax.Array:
        arch = self.arch
        table_VE = self.tokens[...] if arch.has_tokens else table_VE
        # Rows whole on each device before they are looked up: otherwise XLA moves the result around instead.
        x_BLE = jnp.take(constrain(table_VE, "vocab", None), tokens_BL, axis=0)
        if arch.embedding_scale != 1.0:
            x_BLE = x_BLE * arch.embedding_scale
        x_BLE = self._add_positions(x_BLE, tokens_BL, positions_BL)
        if arch.num_types:
            # A product with one-hot rows: its gradient is a small matrix product instead of a scatter.
            one_hot = jax.nn.one_hot(0 if types_BL is None else types_BL, arch.num_types, dtype=jnp.float32)
            x_BLE += one_hot @ self.types[...]
        if arch.token_types and types_BL is not None:
            x_BLE += jnp.take(constrain(table_VE, "vocab", None), types_BL, axis=0)
        if arch.embedding_norm:
            x_BLE = self.norm(x_BLE)
        x_BLE = constrain(x_BLE.astype(arch.compute_dtype), "batch", "length", None)
        x_BLE = dropout(x_BLE, arch.dropout_rate, dropout_key)
        return self.projection(x_BLE) if arch.embedding_projection else x_BLE

    def _add_positions(self, x_BLE: jax.Array, tokens_BL: jax.Array, positions_BL: jax.Array | None) -> jax.Array:
        arch, length = self.arch, tokens_BL.shape[1]
        if positions_BL is None and not arch.count_padding:
            real_BL = (tokens_BL != arch.pad_id).astype(jnp.int32)
            positions_BL = jnp.cumsum(real_BL, axis=1) * real_BL - 1
        if arch.positions == "sinusoidal":
            positions_BL = jnp.arange(length)[None] if positions_BL is None else positions_BL
            return x_BLE + sinusoidal(positions_BL, x_BLE.shape[-1])
        if arch.positions != "learned":
            return x_BLE
        table = constrain(self.positions[...], None, None)
        if positions_BL is None:
            return x_BLE + over_rows(table[arch.position_offset :][:length], x_BLE.shape)
        return x_BLE + jnp.take(table, positions_BL + arch.position_offset, axis=0)


class FeedForward(nnx.Module):
    """Two dense layers with an activation between them, D -> F -> D; the inner one multiplied by a third if gated."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        width, inner = [(arch.hidden_size, "embed")], [(arch.intermediate_size, "mlp")]
        self.up = Dense(width, inner, arch, rngs, bias=arch.mlp_bias)
        if arch.gated:
            self.gate = Dense(width, inner, arch, rngs, bias=arch.mlp_bias)
        self.down = Dense(inner, width, arch, rngs, std=arch.residual_init_std or None, bias=arch.mlp_bias)
        self.arch = arch

    def __call__(self, x_BLD: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        x_RD = x_BLD.reshape(-1, x_BLD.shape[-1])
        if not (self.up.outputs_first and is_few(x_RD)):
            inner_BLF = self._activated(Dense.__call__, x_BLD)
            inner_BLF = constrain(inner_BLF, "batch", "length", "act_mlp")
            return self.down(dropout(inner_BLF, self.arch.activation_dropout_rate, dropout_key))
        # Few rows stay columns from one product to the next.
        inner_FR = self._activated(Dense.columns, jax.lax.optimization_barrier(x_RD.T))
        return jax.lax.optimization_barrier(self.down.columns(inner_FR)).T.reshape(x_BLD.shape)

    def _activated(self, product: Callable[[Dense, jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        name, up = self.arch.activation, product(self.up, x)
        return activation(name, product(self.gate, x)) * up if self.arch.gated else activation(name, up)


class BlockInputs(NamedTuple):
    """What all blocks of a stack share: masks and biases on scores, rotary positions, the encoder's states."""

    bias_BHLL: jax.Array | AttentionMask
    unlimited_BHLL: jax.Array | None  # the bias of the blocks without a window, where others have one
    positions_BL: jax.Array | None
    memory_BSD: jax.Array | None
    memory_bias_B1LS: jax.Array | AttentionMask | None


class Block(nnx.Module):
    """Self-attention, attention to an encoder if there is one, and feed-forward.

    Each with dropout, a residual sum, and a norm before or after it.
    """

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        self.attention = Attention(arch, rngs)
        self.attention_norm = norm(arch)
        if arch.encoder is not None:
            self.cross_attention = Attention(arch, rngs, cross=True)
            self.cross_attention_norm = norm(arch)
        self.feed_forward = FeedForward(arch, rngs)
        self.feed_forward_norm = norm(arch)
        self.arch = arch

    def __call__(
        self,
        x_BLD: jax.Array,
        inputs: BlockInputs,
        key: jax.Array | None = None,
        layer: jax.Array | int = 0,
        probs: list[jax.Array] | None = None,
        cache: LayerCache | None = None,
        cross_cache: LayerCache | None = None,
    ) -> jax.Array:
        """[B, L, D]; `probs` collects the probabilities of its attentions, in order; the caches are those of both."""
        crosses = self.arch.encoder is not None
        inner = self.arch.activation_dropout_rate > 0
        keys = iter(split_key(key, 3 + 2 * crosses + inner))

        mask, options = inputs.bias_BHLL, dict(layer=layer, probs=probs)
        if inputs.unlimited_BHLL is not None:
            mask = jnp.where(layer < self.arch.window_from, inputs.unlimited_BHLL, mask)

        def attend(x_BLD: jax.Array) -> jax.Array:
            own = dict(positions_BL=inputs.positions_BL, dropout_key=next(keys))
            return self.attention(x_BLD, mask, cache, **own, **options)

        def attend_to_encoder(x_BLD: jax.Array) -> jax.Array:
            own = dict(memory_BSD=inputs.memory_BSD, dropout_key=next(keys))
            return self.cross_attention(x_BLD, inputs.memory_bias_B1LS, cross_cache, **own, **options)

        x_BLD = self._residual(x_BLD, attend, self.attention_norm, keys)
        if crosses:
            x_BLD = self._residual(x_BLD, attend_to_encoder, self.cross_attention_norm, keys)
        feed = lambda x_BLD: self.feed_forward(x_BLD, next(keys) if inner else None)  # noqa: E731
        return self._residual(x_BLD, feed, self.feed_forward_norm, keys)

    def _residual(
        self, x_BLD: jax.Array, branch: Callable[[jax.Array], jax.Array], norm: nnx.Module, keys: object
    ) -> jax.Array:
        if self.arch.norm == "post":
            x_BLD = norm(x_BLD + dropout(branch(x_BLD), self.arch.dropout_rate, next(keys)))
        else:
            x_BLD = x_BLD + dropout(branch(norm(x_BLD)), self.arch.dropout_rate, next(keys))
        return constrain(x_BLD, "batch", "length", None)


REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Transformer(nnx.Module):
    """Embeddings and N blocks whose parameters are stacked along a leading axis "layers"."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        self.embeddings = Embeddings(arch, rngs)
        self.layers = nnx.vmap(lambda block_rngs: Block(arch, block_rngs))(rngs.split(arch.num_blocks))
        if arch.norm == "pre":
            self.final_norm = norm(arch)
        if arch.positions == "relative":
            self.relative_bias = weight(rngs, (arch.relative_buckets, arch.num_heads), (None, "heads"), arch)
        self.arch = arch

    def __call__(
        self,
        tokens_BL: jax.Array,
        segments_BL: jax.Array | None = None,
        positions_BL: jax.Array | None = None,
        types_BL: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        memory: EncoderOutput | None = None,
        query_segments_BL: jax.Array | None = None,
        captured: list[StackOutputs] | None = None,
        prefix_BL: jax.Array | None = None,
    ) -> jax.Array:
        """Final hidden states [B, L, D].

        Args:
          tokens_BL: token ids.
          segments_BL: 0 = padding, 1.. = packed document; attention stays inside a segment. None: one full row.
          positions_BL: position ids; None counts from 0 along the row (or its real tokens, if the architecture does).
          types_BL: token types (BERT's sentence A / B); None is all 0.
          dropout_key: a jax.random key; None applies no dropout (evaluation).
          memory: of the encoder, for a stack that has one.
          query_segments_BL: the segment each position looks for, where it is not its own; all 1 lets padding look at
            what the real positions look at, as an attention mask does.
          captured: a list that what the blocks saw is appended to.
          prefix_BL: above 0 for positions of a decoder that their whole segment sees, as an encoder's.
        """
        arch = self.arch
        embeddings_key, layers_key, *final_key = split_key(dropout_key, 3 if arch.final_dropout else 2)
        table_VE = None if memory is None else memory.table_VE
        x_BLD = self.embeddings(tokens_BL, positions_BL, types_BL, embeddings_key, table_VE)
        segments_BL = jnp.ones_like(tokens_BL) if segments_BL is None else segments_BL
        queries_BL = segments_BL if query_segments_BL is None else query_segments_BL
        blocks = captured is None  # where the whole of the probabilities is not asked for
        drops = dropout_key is not None and arch.attention_dropout_rate > 0
        inputs = self._block_inputs(queries_BL, segments_BL, prefix_BL, positions_BL, memory, blocks, drops)
        x_BLD, seen = self._run_layers(x_BLD, inputs, layers_key, captured is not None)
        if arch.norm == "pre":
            x_BLD = self.final_norm(x_BLD)
        if arch.final_dropout:
            x_BLD = dropout(x_BLD, arch.dropout_rate, *final_key)
        if captured is not None:
            inputs, *probs = (tuple(stacked) for stacked in seen)
            captured.append(StackOutputs((*inputs, x_BLD), probs[0], probs[1] if len(probs) > 1 else ()))
        return x_BLD

    def _block_inputs(
        self,
        queries_BL: jax.Array,
        segments_BL: jax.Array,
        prefix_BL: jax.Array | None,
        positions_BL: jax.Array | None,
        memory: EncoderOutput | None,
        blocks: bool,
        drops: bool,
    ) -> BlockInputs:
        """What the layers share. With `blocks` scores may be made a block at a time: in rings where devices share the positions of
        rows, or by kernels (of which not all can do what `drops` probabilities)."""
        arch, length = self.arch, segments_BL.shape[1]
        memory_BSD = None if memory is None else memory.x_BSD
        relative = arch.positions == "relative"
        reach = dict(max_distance=arch.relative_max_distance, both_ways=not arch.causal)
        rings = blocks and length_parts(length) > 1
        memory_bias = None
        if memory is not None:
            both, sources = (queries_BL, memory.segments_BS), memory.segments_BS.shape[1]
            kernels = blocks and in_kernels(arch, (length, sources), drops, False)
            memory_bias = (
                AttentionMask(*both) if (length_parts(sources) > 1 if rings else kernels) else attention_bias(*both)
            )
        kernels = blocks and not relative and in_kernels(arch, (length, length), drops, prefix_BL is not None)
        if rings or kernels:
            distances_HX = distance_table(self.relative_bias[...], length, **reach) if relative else None
            limits = (arch.causal, arch.window, arch.window_from)
            mask = AttentionMask(queries_BL, segments_BL, *limits, prefix_BL, distances_HX)
            return BlockInputs(mask, None, positions_BL, memory_BSD, memory_bias)
        bias = attention_bias(queries_BL, segments_BL, arch.causal, arch.window, prefix_BL)
        if relative:
            bias += relative_bias(self.relative_bias[...], length, length, **reach)
        unlimited = attention_bias(queries_BL, segments_BL, arch.causal, 0, prefix_BL) if arch.window_from else None
        return BlockInputs(bias, unlimited, positions_BL, memory_BSD, memory_bias)

    def _run_layers(
        self, x_BLD: jax.Array, inputs: BlockInputs, key: jax.Array | None, capture: bool
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """The last block's output, and stacked over blocks, if `capture`, its input and attentions."""
        arch = self.arch
        graphdef, stacked = nnx.split(self.layers)
        keys = None if key is None else jax.random.split(key, arch.num_layers)
        one = jax.tree.map(lambda leaf: leaf[0], stacked) if arch.num_blocks == 1 else None
        if arch.share_layers and one is None:
            stacked = jax.tree.map(lambda leaf: leaf[np.array(arch.block_of_layer)], stacked)

        def body(x_BLD: jax.Array, layer: tuple) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            params, layer_key, number = layer
            block = nnx.merge(graphdef, params if one is None else one)
            probs = [] if capture else None
            y_BLD = block(x_BLD, inputs, layer_key, number, probs)
            return y_BLD, (x_BLD, *probs) if capture else ()

        if arch.remat != "none":
            body = jax.checkpoint(body, policy=REMAT_POLICIES[arch.remat], prevent_cse=not arch.scan_layers)
        unroll = 1 if arch.scan_layers else arch.num_layers
        layers = (stacked if one is None else None, keys, jnp.arange(arch.num_layers))
        return jax.lax.scan(body, x_BLD, layers, unroll=unroll)


class Encoder(Transformer):
    """Bidirectional: every position sees its whole segment."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        assert not arch.causal
        super().__init__(arch, rngs)


class Decoder(Transformer):
    """Causal: every position sees itself and earlier ones of its segment (and the encoder's states of that segment)."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        assert arch.causal
        super().__init__(arch, rngs)
