"""The stacks of blocks: Encoder (sees both ways) and Decoder (sees the past, and an encoder).

Legend: B batch, L length, S length of the encoder's rows, D model width, V vocabulary, N layers, H heads, E experts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm_research.models.architecture import Architecture
from lm_research.models.attention.cache import Cache, CacheSlots, LayerCache
from lm_research.models.attention.mask import AttentionMask, attention_bias, chunked, places_from
from lm_research.models.attention.module import use_fused_kernel
from lm_research.models.block import Block, BlockCapture, BlockInputs, block_parts
from lm_research.models.embeddings import Embeddings
from lm_research.models.layer_plan import Segment, Stack, layer_slots, segments, stacks
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.layers import dropout, make_param, norm, split_key
from lm_research.models.positions import alibi_table, by_distance, distance_table, relative_bias
from lm_research.parallel.rules import length_parts


class EncoderOutput(NamedTuple):
    """What a decoder reads of its encoder: final states [B, S, D], mapped to its own width if need be, their segments [B, S], its token table [V, E]."""

    x_BSD: jax.Array
    segments_BS: jax.Array
    table_VE: jax.Array


class StackOutputs(NamedTuple):
    """What a stack went through: the input of each block and the final states, each block's attention, and router.

    hidden_states: N + 1 arrays [B, L, D]; attentions and cross_attentions: arrays [B, H, L, S] of the layers that have one; routing: of
    layers with experts, the router's probabilities [B, L, E].
    """

    hidden_states: tuple[jax.Array, ...]
    attentions: tuple[jax.Array, ...]
    cross_attentions: tuple[jax.Array, ...]
    routing: tuple[jax.Array, ...] = ()


REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Stacks(nnx.Module):
    """Stacked blocks of several kinds, by the name of the kind."""

    def __init__(self, blocks: dict[str, Block]) -> None:
        for name, block in blocks.items():
            setattr(self, name, block)


def stacked_blocks(arch: Architecture, rngs: nnx.Rngs) -> Block | Stacks:
    """The blocks of a stack, their parameters stacked along a leading axis "layers" as layer_plan.py says."""

    def stacked(stack: Stack) -> Block:
        return nnx.vmap(lambda block_rngs: Block(arch, stack.spec, block_rngs))(rngs.split(len(stack.layers)))

    blocks = {stack.name: stacked(stack) for stack in stacks(arch)}
    return blocks[""] if "" in blocks else Stacks(blocks)


class Transformer(nnx.Module):
    """Embeddings and N blocks."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        self.embeddings = Embeddings(arch, rngs)
        self.layers = stacked_blocks(arch, rngs)
        if arch.final_norm:
            self.final_norm = norm(arch)
        if any(spec.positions == "relative" for spec in arch.layers):
            self.relative_bias = make_param(rngs, (arch.relative_buckets, arch.num_heads), (None, "heads"), arch)
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
        capture = captured is not None  # the whole of the probabilities
        drops = dropout_key is not None and arch.attention_dropout_rate > 0
        inputs = self._block_inputs(queries_BL, segments_BL, prefix_BL, positions_BL, memory, not capture, drops)
        x_BLD, seen, _ = self.run_layers(x_BLD, inputs, layers_key, capture)
        if arch.final_norm:
            x_BLD = self.final_norm(x_BLD)
        if arch.final_dropout:
            x_BLD = dropout(x_BLD, arch.dropout_rate, final_key[0])
        if captured is not None:
            states, *shown = zip(*seen, strict=True)
            captured.append(StackOutputs((*states, x_BLD), *(tuple(itertools.chain(*layers)) for layers in shown)))
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
        """What the layers share.

        With `blocks` scores may be made a block at a time: in rings where devices share the positions of rows, or by kernels (of which not
        all can do what `drops` probabilities).
        """
        arch, length = self.arch, segments_BL.shape[1]
        rings = blocks and length_parts(length) > 1
        masks: dict[LayerSpec, jax.Array | AttentionMask] = {}
        made: dict[tuple[Any, ...], jax.Array | AttentionMask] = {}
        for spec in arch.kinds:
            if spec.attention == "none":
                continue
            kernels = blocks and use_fused_kernel(arch, spec, (length, length), drops, prefix_BL is not None)
            looks = (spec.attention, spec.window, spec.positions, spec.num_heads * (spec.positions == "alibi"), kernels)
            if looks not in made:
                pair = (queries_BL, segments_BL)
                if spec.attention == "chunked":
                    places_BL = places_from(segments_BL) if positions_BL is None else positions_BL
                    pair = (chunked(queries_BL, places_BL, spec.window), chunked(segments_BL, places_BL, spec.window))
                window = spec.window if spec.attention == "window" else 0
                mask = AttentionMask(*pair, arch.causal, window, prefix_BL)
                made[looks] = self._with_distances(spec, mask, rings or kernels)
            masks[spec] = made[looks]
        if memory is None:
            return BlockInputs(masks, positions_BL)
        both, sources = (queries_BL, memory.segments_BS), memory.segments_BS.shape[1]
        kernels = blocks and use_fused_kernel(arch, arch.layer_specs[0].across, (length, sources), drops, False)
        in_blocks = length_parts(sources) > 1 if rings else kernels
        memory_mask = AttentionMask(*both) if in_blocks else attention_bias(*both)
        return BlockInputs(masks, positions_BL, memory.x_BSD, memory_mask)

    def _with_distances(self, spec: LayerSpec, mask: AttentionMask, in_blocks: bool) -> jax.Array | AttentionMask:
        """The mask with what a layer adds for distances: for a block at a time, or whole."""
        arch, length = self.arch, mask.query_segments_BL.shape[1]
        reach: dict[str, Any] = dict(max_distance=arch.relative_max_distance, both_ways=not arch.causal)
        if in_blocks:
            distances_HX = None
            if spec.positions == "relative":
                distances_HX = distance_table(self.relative_bias[...], length, **reach)
            elif spec.positions == "alibi":
                distances_HX = jnp.asarray(alibi_table(spec.num_heads, length))
            return mask._replace(distances_HX=distances_HX)
        bias = mask.bias(0, 0)
        if spec.positions == "relative":
            bias += relative_bias(self.relative_bias[...], length, length, **reach)
        elif spec.positions == "alibi":
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
        """The last block's output; of each layer, if `capture`, its input and what its block has seen; the cache with what is new.

        `slots` are those that new tokens take of the cache.
        """
        keys_N, seen, stores = None if key is None else jax.random.split(key, self.arch.num_layers), [], []
        for number, segment in enumerate(segments(self.arch)):
            store = None if cache is None else cache.of(number)
            x_BLD, shown, store = self._run_segment(segment, x_BLD, inputs, keys_N, capture, store, slots)
            seen += shown
            stores.append(store)
        return x_BLD, seen, None if cache is None else cache.with_layers(stores)

    def _run_segment(
        self,
        segment: Segment,
        x_BLD: jax.Array,
        inputs: BlockInputs,
        keys_N: jax.Array | None,
        capture: bool,
        store: Any,
        slots: CacheSlots | None,
    ) -> tuple[jax.Array, list[tuple[Any, ...]], Any]:
        """The same of one segment: a loop over its repetitions, whose body is its period."""
        arch, (first, period, count) = self.arch, segment
        inlined = (
            count == 1 and arch.num_layers > 1
        )  # a lone layer in its loop: XLA would fuse, and so round, otherwise
        looped = not inlined and arch.scan_layers
        specs = arch.layer_specs[first : first + period]
        params, pick = self._parameters(segment)
        crosses = None
        if store is not None:  # the cache is carried whole, so that only new entries are written
            store, crosses = store

        def run(
            spec: LayerSpec, params: Any, x_BLD: jax.Array, key: Any, number: Any, pair: Any, cross: Any
        ) -> tuple[jax.Array, tuple[Any, ...], Any]:
            block, seen, own = nnx.merge(block_parts(arch, spec)[0], params), BlockCapture() if capture else None, None
            if pair is not None:
                assert slots is not None
                own = LayerCache(pair[0], pair[1], slots, spec.reach)
            across = None if cross is None else LayerCache(cross[0], cross[1])
            y_BLD = block(x_BLD, inputs, key, number, seen, own, across)
            shown = () if seen is None else (x_BLD, seen.attention, seen.cross_attention, seen.routing)
            return y_BLD, shown, None if own is None else (own.key, own.value)

        if arch.remat != "none" and store is None:
            run = jax.checkpoint(run, policy=REMAT_POLICIES[arch.remat], prevent_cse=not looped, static_argnums=0)

        def body(carry: tuple[jax.Array, Any], repetition: tuple[Any, ...]) -> tuple[tuple[jax.Array, Any], list[Any]]:
            (x_BLD, store), (params, keys, number, crosses) = carry, repetition
            shown, stored = [], []
            for place, spec in enumerate(specs):

                def own(tree: Any, place: int = place) -> Any:
                    return None if tree is None else tree[place]

                def at(x: jax.Array) -> jax.Array:
                    return jax.lax.dynamic_index_in_dim(x, number, keepdims=False)

                key = keys if keys is None or period == 1 else keys[place]
                layer = number if (first, period) == (0, 1) else first + number * period + place
                pair, cross = jax.tree.map(at, own(store)), own(crosses)
                x_BLD, seen, pair = run(spec, pick(params, place), x_BLD, key, layer, pair, cross)

                def put(x: jax.Array, new: jax.Array) -> jax.Array:
                    return jax.lax.dynamic_update_index_in_dim(x, new, number, 0)

                stored.append(None if pair is None else jax.tree.map(put, own(store), pair))
                shown.append(seen)
            return (x_BLD, None if store is None else tuple(stored)), shown

        if keys_N is not None:
            keys_N = keys_N[first : first + count * period]
            keys_N = keys_N if period == 1 else keys_N.reshape(count, period)
        if inlined:
            params, keys_N, others = jax.tree.map(lambda x: x[0], (params, keys_N, crosses))
            (x_BLD, store), layers = body((x_BLD, store), (params, keys_N, 0, others))
        else:
            repetitions = (params, keys_N, jnp.arange(count), crosses)
            unroll = 1 if arch.scan_layers else count
            (x_BLD, store), shown = jax.lax.scan(body, (x_BLD, store), repetitions, unroll=unroll)
            layers = [jax.tree.map(lambda x, n=n: x[n], one) for n in range(count) for one in shown] if capture else []
        return x_BLD, layers if capture else [], None if store is None else (store, crosses)

    def of_each_layer(self, function: Callable[[Block], tuple[Any, ...]]) -> tuple[tuple[Any, ...], ...]:
        """The parts of what `function` makes of each block, each part for each segment and layer of its period, [count, ...]."""
        found = []
        for segment in segments(self.arch):
            specs = self.arch.layer_specs[segment.first : segment.first + segment.period]
            params, pick = self._parameters(segment)

            def of_period(repetition: tuple[Any, ...], specs: Any = specs, pick: Any = pick) -> tuple[Any, ...]:
                graphs = [block_parts(self.arch, spec)[0] for spec in specs]
                blocks = (nnx.merge(graph, pick(repetition[0], place)) for place, graph in enumerate(graphs))
                return tuple(map(function, blocks))

            found.append(tuple(zip(*jax.lax.map(of_period, (params, jnp.arange(segment.repeats))), strict=True)))
        return tuple(zip(*found, strict=True))

    def _parameters(self, segment: Segment) -> tuple[Any, Any]:
        """Parameters of a segment by stack, [count, ...] or with several of a period [count, several, ...], and what picks those of a layer."""
        arch, (first, period, count) = self.arch, segment
        own = layer_slots(arch)[first : first + count * period]
        states = {stack.name: nnx.split(_blocks(self, stack.name))[1] for stack in stacks(arch)}
        if arch.share_layers and arch.num_blocks == 1:  # not copied for each layer
            one = jax.tree.map(lambda leaf: leaf[0], states[""])
            return None, lambda params, place: one
        if arch.share_layers:
            rows = np.array([place.row for place in own])
            return jax.tree.map(lambda leaf: leaf[rows], states[""]), lambda params, place: params
        once = own[:period]
        each = {place.stack: sum(other.stack == place.stack for other in once) for place in once}
        starts = {place.stack: place.row for place in reversed(own)}

        def cut(name: str) -> Any:
            several, start = each[name], starts[name]

            def one(leaf: jax.Array) -> jax.Array:
                leaf = leaf if len(leaf) == several * count else leaf[start : start + several * count]
                return leaf if several == 1 else leaf.reshape(count, several, *leaf.shape[1:])

            return jax.tree.map(one, states[name])

        def pick(params: Any, place: int) -> Any:
            name, row = once[place]
            several = params[name]
            return several if each[name] == 1 else jax.tree.map(lambda leaf: leaf[row - starts[name]], several)

        return {name: cut(name) for name in each}, pick


def _blocks(stack: Transformer, name: str) -> Block:
    """The stacked blocks of a kind."""
    found = getattr(stack.layers, name) if name else stack.layers
    assert isinstance(found, Block)
    return found


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
