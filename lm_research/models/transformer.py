"""Stacks of blocks: the bidirectional Encoder and the causal Decoder, which may attend to an encoder.

Legend: lm_research/models/__init__.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm_research.models.architecture import Architecture
from lm_research.models.attention.block_sums import BlockSums, block_sums
from lm_research.models.attention.cache import Cache, CacheSlots, LayerCache
from lm_research.models.attention.mask import (
    AttentionMask,
    attention_bias,
    block_bias,
    chunk_segments,
    document_positions,
    positions_from_segments,
)
from lm_research.models.attention.module import Distances, GlobalTokens, kernel_rotation, use_fused_kernel
from lm_research.models.block import Block, BlockCapture, BlockInputs, DepthAverage, DepthWeights, block_parts
from lm_research.models.embeddings import Embeddings, TokenTable
from lm_research.models.layer_plan import Segment, Stack, layer_slots, segments, stacks
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.layers import Dense, as_matrices, dropout, make_param, norm, split_key
from lm_research.models.load_balancing import add_loads, collects_loads, router_load
from lm_research.models.positions import (
    alibi_by_key,
    alibi_slopes,
    alibi_table,
    by_distance,
    distance_table,
    relative_bias,
)
from lm_research.models.rematerialization import remat_policy
from lm_research.parallel.rules import length_parts


class EncoderOutput(NamedTuple):
    """An encoder's output as its decoder reads it: final states [B, S, D] in the decoder's width, segments [B, S], token table."""

    x_BSD: jax.Array
    segments_BS: jax.Array
    table: TokenTable


class StackOutputs(NamedTuple):
    """Captured activations of a stack.

    Attributes:
      hidden_states: N + 1 arrays [B, L, D], the input of each block and the final states.
      attentions: probabilities [B, H, L, S] of each layer with attention; sums of blocks follow the positions.
      cross_attentions: the same of attention to an encoder.
      routing: router probabilities [B, L, experts] of each layer with experts.
    """

    hidden_states: tuple[jax.Array, ...]
    attentions: tuple[jax.Array, ...]
    cross_attentions: tuple[jax.Array, ...]
    routing: tuple[jax.Array, ...] = ()


State = tuple[jax.Array, tuple[jax.Array, ...]]  # of a stack, and those that DepthAverage sums


class Stacks(nnx.Module):
    """Stacked blocks of several kinds, as an attribute per kind."""

    def __init__(self, blocks: dict[str, Block]) -> None:
        for name, block in blocks.items():
            setattr(self, name, block)


def stacked_blocks(arch: Architecture, rngs: nnx.Rngs) -> Block | Stacks:
    """Make the blocks of a stack, with parameters stacked along a leading axis "layers" (layer_plan.py)."""

    def make(stack: Stack) -> Block:
        return nnx.vmap(lambda block_rngs: Block(arch, stack.spec, block_rngs))(rngs.split(len(stack.layers)))

    blocks = {stack.name: make(stack) for stack in stacks(arch)}
    return blocks[""] if "" in blocks else Stacks(blocks)


class Transformer(nnx.Module):
    """Embeddings and N blocks."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        self.embeddings = Embeddings(arch, rngs)
        self.layers = stacked_blocks(arch, rngs)
        if arch.final_norm:
            self.final_norm = norm(arch)
        if arch.output_projection:
            width, narrow = [(arch.hidden_size, "embed")], [(arch.embedding_width, None)]
            self.output_projection = Dense(width, narrow, arch, rngs, bias=False)
        if any(spec.uses_relative_table for spec in arch.layers):
            self.relative_bias = make_param(rngs, (arch.relative_buckets, arch.num_heads), (None, "heads"), arch)
        if arch.has_block_sums:
            self.block_relative_bias = make_param(rngs, (arch.relative_buckets, arch.num_heads), (None, "heads"), arch)
        if any(spec.position_terms for spec in arch.layers):
            shape = (arch.relative_buckets, arch.hidden_size)
            self.relative_embeddings = make_param(rngs, shape, (None, "embed"), arch)
            if arch.relative_norm:
                self.relative_norm = norm(arch.replace(norm_scale=True, norm_bias=True))
        if arch.depth_weights:
            self.depth_weights = DepthWeights(2 * arch.num_layers)
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
        task_types_BL: jax.Array | None = None,
    ) -> jax.Array:
        """Final hidden states [B, L, D].

        Args:
          tokens_BL: token ids.
          segments_BL: 0 = padding, 1.. = packed document; attention stays inside a segment. None is one segment without padding.
          positions_BL: position ids; None counts all positions, or the real tokens only (`arch.count_padding`, `arch.count_masked`),
            from 0.
          types_BL: token types (BERT's sentence A / B); None is all 0.
          dropout_key: PRNG key; None disables dropout (evaluation).
          memory: the encoder's output, for a stack that has one.
          query_segments_BL: the segment whose keys each position attends to, where it is not its own; all 1 lets padding attend to the
            real positions, as with an attention mask in transformers.
          captured: list that collects the activations of the stack.
          prefix_BL: above 0 for positions that their whole segment attends to: of a decoder as in an encoder, of a bidirectional window
            in addition to the near ones. In layers with `global_tokens` these also attend to their whole segment.
          task_types_BL: task types (ERNIE 2.0); None is all 0.
        """
        arch = self.arch
        embeddings_key, layers_key, *final_key = split_key(dropout_key, 3 if arch.final_dropout else 2)
        table = None if memory is None else memory.table
        if positions_BL is None and segments_BL is not None and not arch.count_masked:
            positions_BL = document_positions(segments_BL)
        x_BLD = self.embeddings(tokens_BL, positions_BL, types_BL, embeddings_key, table, task_types_BL)
        segments_BL = jnp.ones_like(tokens_BL) if segments_BL is None else segments_BL
        queries_BL = segments_BL if query_segments_BL is None else query_segments_BL
        if arch.isolated_padding:
            x_BLD = jnp.where(segments_BL[..., None] > 0, x_BLD, 0)
            queries_BL = jnp.where(segments_BL > 0, queries_BL, -1)  # the segment of no key
        capture = captured is not None  # probabilities are returned whole, so not computed blockwise
        inputs = self._block_inputs(queries_BL, segments_BL, prefix_BL, positions_BL, memory, not capture)
        if any(spec.conv_width or spec.span_conv_width or spec.attention == "blocks" for spec in arch.layers):
            inputs = inputs._replace(input_BLD=x_BLD, segments_BL=segments_BL)
        weights_BL = None
        if collects_loads():
            weights_BL = (segments_BL > 0).astype(jnp.float32)
            inputs = inputs._replace(load_weights_BL=weights_BL)
        if arch.has_block_sums:
            inputs = inputs._replace(block_sums=self._block_sums(segments_BL))
        x_BLD, layers, _ = self.run_layers(x_BLD, inputs, layers_key, capture)
        if weights_BL is not None and any(spec.num_experts for spec in arch.layers):
            add_loads(list(itertools.chain(*(one[-1] for one in layers))), weights_BL)
        x_BLD = self.finish(x_BLD)
        if arch.final_dropout:
            x_BLD = dropout(x_BLD, arch.dropout_rate, final_key[0])
        if captured is not None:
            states, *probs = zip(*layers, strict=True)
            captured.append(StackOutputs((*states, x_BLD), *(tuple(itertools.chain(*one)) for one in probs[:3])))
        return x_BLD

    def finish(self, x_BLD: jax.Array) -> jax.Array:
        """Final states of the last block's output: normalized, and projected to E if the architecture requires it."""
        x_BLD = self.final_norm(x_BLD) if self.arch.final_norm else x_BLD
        return self.output_projection(x_BLD) if self.arch.output_projection else x_BLD

    def _block_inputs(
        self,
        queries_BL: jax.Array,
        segments_BL: jax.Array,
        prefix_BL: jax.Array | None,
        positions_BL: jax.Array | None,
        memory: EncoderOutput | None,
        allow_blockwise: bool,
    ) -> BlockInputs:
        """Make the inputs that all layers share.

        With `allow_blockwise` scores may be computed a block at a time: in rings if devices divide the positions, or in kernels.
        """
        arch, length = self.arch, segments_BL.shape[1]
        ring = allow_blockwise and length_parts(length) > 1 and not arch.merged_attention
        masks: dict[LayerSpec, jax.Array | AttentionMask] = {}
        distinct: dict[tuple[Any, ...], jax.Array | AttentionMask] = {}
        for spec in arch.kinds:
            if spec.attention == "none":
                continue
            fused = allow_blockwise and use_fused_kernel(arch, spec, (length, length), prefix_BL is not None)
            traits = (*spec.mask_traits, fused)
            if traits not in distinct:
                pair = (queries_BL, segments_BL)
                if spec.attention == "chunked":
                    places_BL = positions_from_segments(segments_BL) if positions_BL is None else positions_BL
                    pair = (
                        chunk_segments(queries_BL, places_BL, spec.window),
                        chunk_segments(segments_BL, places_BL, spec.window),
                    )
                window = spec.window if spec.attention == "window" else 0
                mask = AttentionMask(*pair, arch.causal, window, prefix_BL, window_ahead=spec.window_ahead)
                in_full = spec.position_terms or spec.block_sums or spec.attention == "blocks"
                blockwise, counted_BL = fused or bool(ring and not in_full), None if arch.count_masked else positions_BL
                if spec.positions == "alibi" and (spec.scaled_alibi or blockwise and counted_BL is not None):
                    places_BL = document_positions(segments_BL) if positions_BL is None else positions_BL
                    scale = spec.score_scale if spec.scaled_alibi else 0.0
                    mask = mask._replace(key_bias_BHS=alibi_by_key(spec.num_heads, places_BL, scale))
                distinct[traits] = self._add_distances(spec, mask, blockwise, counted_BL)
            masks[spec] = distinct[traits]
        distances = {spec: self.distances() for spec in masks if spec.position_terms}
        chosen = None
        if prefix_BL is not None and arch.has_global_tokens:
            whole = AttentionMask(queries_BL, segments_BL)
            chosen = GlobalTokens(prefix_BL, whole if ring else whole.bias(0, 0))
        length_in_use, places_BL = None, jnp.arange(length)[None] if positions_BL is None else positions_BL
        if any(spec.rotary_by_length for spec in arch.kinds):
            length_in_use = jnp.max((segments_BL > 0) * places_BL) + 1
        rotations = {
            spec: kernel_rotation(spec, places_BL, length_in_use)
            for spec, mask in masks.items()
            if isinstance(mask, AttentionMask) and not ring
        }
        more: dict[str, Any] = dict(length=length_in_use, rotations=rotations)
        if memory is None:
            return BlockInputs(masks, positions_BL, distances=distances, global_tokens=chosen, **more)
        pair, sources = (queries_BL, memory.segments_BS), memory.segments_BS.shape[1]
        cross_spec = arch.layer_specs[0].across
        fused = allow_blockwise and use_fused_kernel(arch, cross_spec, (length, sources), False)
        blockwise = length_parts(sources) > 1 if ring else fused
        memory_mask = AttentionMask(*pair) if blockwise else attention_bias(*pair)
        return BlockInputs(masks, positions_BL, memory.x_BSD, memory_mask, distances, **more)

    def distances(self, rows_BLS: jax.Array | None = None) -> Distances:
        """Make the inputs of layers with "disentangled" positions; `rows_BLS` is that of Distances."""
        table_RD = self.relative_embeddings[...]
        table_RD = self.relative_norm(table_RD) if self.arch.relative_norm else table_RD
        return Distances(table_RD, rows_BLS, self.arch.relative_max_distance)

    def _block_sums(self, segments_BL: jax.Array) -> dict[LayerSpec, BlockSums | None]:
        """The blocks of each kind of layer that attends to their sums."""
        table_RH, furthest = self.block_relative_bias[...], self.arch.relative_max_distance
        kinds = (spec for spec in self.arch.kinds if spec.block_sums)
        return {spec: block_sums(segments_BL, spec.block_sums, table_RH, furthest) for spec in kinds}

    def _add_distances(
        self, spec: LayerSpec, mask: AttentionMask, blockwise: bool, positions_BL: jax.Array | None
    ) -> jax.Array | AttentionMask:
        """Add the layer's bias by distance to a mask: an AttentionMask if `blockwise`, else the whole bias.

        Distances for ALiBi are those of `positions_BL`, or None for those of the places in the row.
        """
        arch, length = self.arch, mask.query_segments_BL.shape[1]
        reach: dict[str, Any] = dict(max_distance=arch.relative_max_distance, bidirectional=not arch.causal)
        if blockwise:
            distances_HX = None
            if spec.uses_relative_table:
                distances_HX = distance_table(self.relative_bias[...], length, **reach)
            elif spec.positions == "alibi" and mask.key_bias_BHS is None:
                distances_HX = jnp.asarray(alibi_table(spec.num_heads, length))
            return mask._replace(distances_HX=distances_HX)
        bias = mask.bias(0, 0)
        if spec.has_sparse_blocks(length):
            bias += block_bias(length, spec.window, spec.random_blocks)
        if spec.uses_relative_table:
            bias += relative_bias(self.relative_bias[...], length, length, **reach)
        elif spec.positions == "alibi" and not spec.scaled_alibi and positions_BL is not None:
            distance_BLS = positions_BL[:, :, None] - positions_BL[:, None]  # of keys that are seen, not negative
            bias -= alibi_slopes(spec.num_heads)[:, None, None] * distance_BLS[:, None]
        elif spec.positions == "alibi" and not spec.scaled_alibi:
            bias += by_distance(alibi_table(spec.num_heads, length), length)[None]
        return bias

    def run_layers(
        self,
        x_BLD: jax.Array,
        inputs: BlockInputs,
        key: jax.Array | None = None,
        capture: bool = False,
        cache: Cache | None = None,
        slots: CacheSlots | None = None,
    ) -> tuple[jax.Array, list[tuple[Any, ...]], Cache | None]:
        """Run all layers.

        Args:
          x_BLD: input of the first layer.
          inputs: inputs that all layers share.
          key: PRNG key for dropout; None disables it.
          capture: whether to return activations.
          cache: keys and values of earlier tokens.
          slots: the cache's slots that the tokens take.

        Returns:
          The last block's output; a tuple per layer of its input and its probabilities (BlockCapture), if `capture`, and of a tuple of
          its router loads, if `inputs` has weights for them; and the cache with the new keys and values.
        """
        keys_N, layers, stores = None if key is None else jax.random.split(key, self.arch.num_layers), [], []
        past: tuple[jax.Array, ...] = (x_BLD,) if self.arch.depth_weights else ()
        for index, segment in enumerate(segments(self.arch)):
            store = None if cache is None else cache.segment(index)
            (x_BLD, past), captured, store = self._run_segment(
                segment, (x_BLD, past), inputs, keys_N, capture, store, slots
            )
            layers += captured
            stores.append(store)
        return x_BLD, layers, None if cache is None else cache.with_segments(stores)

    def _run_segment(
        self,
        segment: Segment,
        state: State,
        inputs: BlockInputs,
        keys_N: jax.Array | None,
        capture: bool,
        store: Any,
        slots: CacheSlots | None,
    ) -> tuple[State, list[tuple[Any, ...]], Any]:
        """Run the layers of one segment: a loop over its repetitions, whose body is one period. Returns as `run_layers`."""
        arch, (first, period, count) = self.arch, segment
        # A segment without repetitions needs no loop; a stack of one layer keeps it, as without it XLA would fuse and round differently.
        inlined = count == 1 and (arch.num_layers > 1 or arch.depth_weights)
        looped = not inlined and arch.scan_layers
        specs = arch.layer_specs[first : first + period]
        params, select = self._parameters(segment)
        returns_probs = capture or inputs.load_weights_BL is not None
        cross_store = None
        if store is not None:  # the cache is a carry of the loop, so that only new entries are written
            store, cross_store = store

        def run(
            spec: LayerSpec, params: Any, state: State, key: Any, layer: Any, pair: Any, cross_pair: Any
        ) -> tuple[State, tuple[Any, ...], Any]:
            x_BLD, past = state
            block, probs = nnx.merge(block_parts(arch, spec)[0], params), BlockCapture() if returns_probs else None
            layer_cache = None
            if pair is not None:
                assert slots is not None
                layer_cache = LayerCache(pair[0], pair[1], slots, spec.reach)
            cross_cache = None if cross_pair is None else LayerCache(cross_pair[0], cross_pair[1])
            average = self.depth_average(past, first) if past else None
            y_BLD = block(x_BLD, inputs, key, layer, probs, layer_cache, cross_cache, average)
            captured: tuple[Any, ...] = ()
            if probs is not None and capture:
                captured = (x_BLD, probs.attention, probs.cross_attention, probs.routing)
            if probs is not None and inputs.load_weights_BL is not None:
                loads = (router_load(one, spec.experts_per_token, inputs.load_weights_BL) for one in probs.routing)
                captured = (*captured, tuple(loads))
            state = y_BLD, () if average is None else tuple(average.states)
            return state, captured, None if layer_cache is None else (layer_cache.key, layer_cache.value)

        if arch.remat != "none" and store is None:
            run = jax.checkpoint(run, policy=remat_policy(arch), prevent_cse=not looped, static_argnums=0)

        def body(carry: tuple[State, Any], repetition: tuple[Any, ...]) -> tuple[tuple[State, Any], list[Any]]:
            (state, store), (params, keys, number, cross_store) = carry, repetition
            captured, stored = [], []

            def read(x: jax.Array) -> jax.Array:
                return jax.lax.dynamic_index_in_dim(x, number, keepdims=False)

            def write(x: jax.Array, new: jax.Array) -> jax.Array:
                return jax.lax.dynamic_update_index_in_dim(x, new, number, 0)

            for offset, spec in enumerate(specs):
                key = keys if keys is None or period == 1 else keys[offset]
                layer = number if (first, period) == (0, 1) else first + number * period + offset
                pairs = None if store is None else store[offset]
                cross_pair = None if cross_store is None else cross_store[offset]
                pair = jax.tree.map(read, pairs)
                state, activations, pair = run(spec, select(params, offset), state, key, layer, pair, cross_pair)
                stored.append(None if pair is None else jax.tree.map(write, pairs, pair))
                captured.append(activations)
            return (state, None if store is None else tuple(stored)), captured

        if keys_N is not None:
            keys_N = keys_N[first : first + count * period]
            keys_N = keys_N if period == 1 else keys_N.reshape(count, period)
        if inlined:
            params, keys_N, cross_first = jax.tree.map(lambda x: x[0], (params, keys_N, cross_store))
            (state, store), layers = body((state, store), (params, keys_N, 0, cross_first))
        else:
            repetitions = (params, keys_N, jnp.arange(count), cross_store)
            unroll = 1 if arch.scan_layers else count
            (state, store), stacked = jax.lax.scan(body, (state, store), repetitions, unroll=unroll)
            layers = (
                [jax.tree.map(lambda x, n=n: x[n], one) for n in range(count) for one in stacked]
                if returns_probs
                else []
            )
        return state, layers if returns_probs else [], None if store is None else (store, cross_store)

    def depth_average(self, states: Sequence[jax.Array], layer: int = 0) -> DepthAverage:
        """The weighted sums after each branch from this layer on, given the states before."""
        rows = [getattr(self.depth_weights, f"row_{row}") for row in range(2 * layer, 2 * self.arch.num_layers)]
        return DepthAverage(states, [row[...] for row in rows])

    def map_blocks(self, function: Callable[[Block], tuple[Any, ...]]) -> tuple[tuple[Any, ...], ...]:
        """Apply `function` to each block; each of its outputs is a tuple over segments of a tuple over a period's layers of [count, ...]."""
        outputs = []
        for segment in segments(self.arch):
            specs = self.arch.layer_specs[segment.first : segment.first + segment.period]
            params, select = self._parameters(segment)

            def map_period(repetition: tuple[Any, ...], specs: Any = specs, select: Any = select) -> tuple[Any, ...]:
                graphs = [block_parts(self.arch, spec)[0] for spec in specs]
                blocks = (nnx.merge(graph, select(repetition[0], offset)) for offset, graph in enumerate(graphs))
                return tuple(map(function, blocks))

            outputs.append(tuple(zip(*jax.lax.map(map_period, (params, jnp.arange(segment.repeats))), strict=True)))
        return tuple(zip(*outputs, strict=True))

    def _parameters(self, segment: Segment) -> tuple[Any, Any]:
        """The parameters of a segment, and a function that selects those of one layer.

        The parameters are a dict by stack of arrays [count, ...], one slice per repetition; of a stack with several layers of the period,
        [count, several, ...]. Example: of the pattern (local, local, global) repeated 4 times, the stack of local layers has [4, 2, ...].
        The function takes a repetition's parameters and the layer's offset in the period.
        """
        arch, (first, period, count) = self.arch, segment
        layers = layer_slots(arch)[first : first + count * period]
        states = {stack.name: as_matrices(nnx.split(_blocks(self, stack.name))[1]) for stack in stacks(arch)}
        if arch.share_layers and arch.num_blocks == 1:  # not copied for each layer
            block = jax.tree.map(lambda leaf: leaf[0], states[""])
            return None, lambda params, offset: block
        if arch.share_layers:
            rows = np.array([layer.row for layer in layers])
            return jax.tree.map(lambda leaf: leaf[rows], states[""]), lambda params, offset: params
        one_period = layers[:period]
        counts = {layer.stack: sum(other.stack == layer.stack for other in one_period) for layer in one_period}
        starts = {layer.stack: layer.row for layer in reversed(layers)}

        def by_repetition(name: str) -> Any:
            several, start = counts[name], starts[name]

            def split(leaf: jax.Array) -> jax.Array:
                leaf = leaf if len(leaf) == several * count else leaf[start : start + several * count]
                return leaf if several == 1 else leaf.reshape(count, several, *leaf.shape[1:])

            return jax.tree.map(split, states[name])

        def select(params: Any, offset: int) -> Any:
            name, row = one_period[offset]
            if counts[name] == 1:
                return params[name]
            return jax.tree.map(lambda leaf: leaf[row - starts[name]], params[name])

        return {name: by_repetition(name) for name in counts}, select


Module = TypeVar("Module")


def quantize_products(model: Module, quantization: str) -> Module:
    """Make the blocks of a bound model compute products in the type that `quantization` names (quantization.py), and return it."""
    if quantization != "none":
        for _, node in list(nnx.iter_graph(model)):
            if isinstance(node, Transformer):
                node.arch = node.arch.replace(quantization=quantization)
    return model


def _blocks(stack: Transformer, name: str) -> Block:
    """The stacked blocks of one kind."""
    blocks = getattr(stack.layers, name) if name else stack.layers
    assert isinstance(blocks, Block)
    return blocks


class Encoder(Transformer):
    """A bidirectional stack: every position attends to its whole segment."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        assert not arch.causal
        super().__init__(arch, rngs)


class Decoder(Transformer):
    """A causal stack: every position attends to itself and earlier ones of its segment, and to the encoder's states of that segment."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        assert arch.causal
        super().__init__(arch, rngs)
