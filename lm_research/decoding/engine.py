"""Greedy decoding and sampling: one compiled program reads the prompts, another generates tokens in a loop on the device.

The loop runs up to a given slot, so the same program generates a whole text at once, pieces of it for streaming, or stretches
between two searches for stop strings. Its state is donated, so the cache is updated in place.

Legend: B prompts, R rows (B x copies), P slots of prompts, S slots, V vocabulary, E end tokens, T best tokens.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lm_research.decoding import logits_processors, sampling
from lm_research.decoding.logits_processors import NO_TOKEN, History, Seen
from lm_research.decoding.prompts import Prompts
from lm_research.models import decode
from lm_research.models.decode import BoundModel, Cache, CacheSlots
from lm_research.models.definition import ModelDefinition, Params
from lm_research.parallel.rules import batch_shards

# Array arguments of a program: {"rules": ..., "filters": ..., "ends_E", "pad", "seed_B"}, see generation_config.py.
Settings = Mapping[str, Any]
PROGRAMS = 128  # most compiled programs that an engine keeps; one per function, plan and shapes of arrays


@dataclasses.dataclass(frozen=True)
class DecodeSpec:
    """Static arguments of a program, which it is compiled for.

    Attributes:
      slots: S, number of prompt and new tokens.
      copies: rows per prompt.
      sample: draw tokens instead of taking the most likely one.
      candidates: see sampling.draw.
      logprobs: record the log-probability of each new token.
      best: T, number of most likely tokens to record per step.
    """

    slots: int
    copies: int = 1
    sample: bool = False
    candidates: int = 0
    logprobs: bool = False
    best: int = 0


class Records(NamedTuple):
    """Log-probabilities [nats] before any logits processor, in the slots of their tokens; None if not requested."""

    logprob_RS: jax.Array | None = None
    best_RST: jax.Array | None = None
    best_logprob_RST: jax.Array | None = None


class DecodeState(NamedTuple):
    """State of the loop: `length` slots are filled, the first `width` with prompts; the latest token is not yet in the cache."""

    tokens_RS: jax.Array
    start_R: jax.Array
    width: jax.Array
    length: jax.Array
    finished_R: jax.Array
    keys_R: jax.Array
    seen: Seen
    cache: Cache
    records: Records

    def history(self) -> History:
        """The tokens so far, for logits processors."""
        new_R = jnp.broadcast_to(self.length - self.width, self.start_R.shape)
        return self.seen.history(self.tokens_RS, self.width, new_R)


class Engine:
    """Compiled generation programs of a model with one set of parameters.

    Attributes:
      definition: the model.
      source_params: its parameters; `params`: the same, with the decoder's layers unstacked where that is faster.
      rows_multiple: the number of rows of a batch must be a multiple of this.
    """

    def __init__(self, definition: ModelDefinition, params: Params, unstacked: bool | None = None) -> None:
        """With `unstacked`, copy the decoder's layers into separate matrices (models.decode_layout); None does so on a single CPU."""
        self.definition = definition
        leaf = jax.tree.leaves(params)[0]
        sharding = leaf.sharding if isinstance(leaf, jax.Array) else None
        mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
        self.mesh = mesh if isinstance(mesh, Mesh) else None
        self.rows_multiple = batch_shards(self.mesh.shape) if self.mesh is not None else 1
        if unstacked is None:
            unstacked = jax.default_backend() == "cpu" and (self.mesh is None or self.mesh.size == 1)
        self.source_params = self.params = params
        if unstacked:
            with self.on_mesh():
                self.params = jax.jit(functools.partial(decode.unroll, definition))(params)
        self._programs: collections.OrderedDict[Any, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def on_mesh(self) -> contextlib.AbstractContextManager[Any]:
        """Context in which arrays are sharded over the mesh of the parameters, if they have one."""
        return jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext()

    def program(self, function: Any, plan: Any, donate: int | None = None) -> Any:
        """Return `function(bound, plan, *arrays)` as a compiled function of `arrays`.

        Args:
          function: takes the model with its parameters, the plan and arrays.
          plan: hashable static arguments.
          donate: index of the array argument whose buffers may be reused.
        """

        def call(*arrays: Any) -> Any:
            compiled = self._compiled((function, plan, donate), arrays)
            with self.on_mesh():
                return compiled(self.params, *arrays)

        return call

    def _compiled(self, program: tuple[Any, Any, int | None], arrays: Any) -> Any:
        """The jitted function of a program for arrays of these shapes; the least recently used ones beyond PROGRAMS are dropped."""
        leaves, tree = jax.tree.flatten(arrays)
        key = program, tree, tuple((np.shape(leaf), _dtype(leaf)) for leaf in leaves)
        function, plan, donate = program
        with self._lock:
            if key in self._programs:
                self._programs.move_to_end(key)
                return self._programs[key]

            def run(params: Params, *arrays: Any) -> Any:
                return function(decode.bind(self.definition, params), plan, *arrays)

            jitted = jax.jit(run, donate_argnums=() if donate is None else donate + 1)
            self._programs[key] = jitted
            if len(self._programs) > PROGRAMS:
                self._programs.popitem(last=False)
            return jitted

    def prefill(self, plan: DecodeSpec, prompts: Prompts[np.ndarray], settings: Settings) -> DecodeState:
        """Read the prompts and choose the first new token of each row."""
        return self.program(prefill, plan)(prompts, settings)

    def decode_until(self, plan: DecodeSpec, state: DecodeState, settings: Settings, until: int) -> DecodeState:
        """Generate until `until` slots are filled or all rows are finished. The buffers of `state` are donated."""
        return self.program(decode_until, plan, donate=0)(state, settings, np.int32(until))


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if isinstance(leaf, np.ndarray | np.generic | jax.Array) else type(leaf)


# --- reading prompts --------------------------------------------------------------------------------------------------


def causal_slots(start_R: jax.Array, slot: jax.Array, length: int, span: int) -> CacheSlots:
    """Place `length` tokens at `slot` (a number, or [R]) and after it; each attends to its row's slots up to its own."""
    slot_S = jnp.arange(span)
    own_RL = jnp.reshape(slot, (-1, 1)) + jnp.arange(length)
    visible_RLS = (slot_S <= own_RL[..., None]) & (slot_S >= start_R[:, None, None])
    positions_RL = jnp.maximum(own_RL - start_R[:, None], 0)
    return CacheSlots(slot, positions_RL, visible_RLS, own_RL[..., None] - slot_S)


def encode_prompts(
    bound: BoundModel, prompts: Prompts[jax.Array], slots: int, step: int = 1, shared: int = 0
) -> tuple[jax.Array, Cache]:
    """Encode prompts: final states of their tokens [B, P, D], and a cache with them.

    Args:
      bound: the model with its parameters.
      prompts: the batch.
      slots: capacity of the cache.
      step: number of tokens that are later added at once.
      shared: first slot from which the tokens of a step have the same position, as beams do; 0 for none (see
        models.attention.cache.capacity).
    """
    memory = None
    if prompts.source_BM is not None:
        mask_BM, options = prompts.source_mask_BM, {"query_segments_BL": jnp.ones_like(prompts.source_BM)}
        assert mask_BM is not None
        if bound.model.arch.source.has_global_tokens:
            mask_BM, options["prefix_BL"] = jnp.minimum(mask_BM, 1), jnp.maximum(mask_BM - 1, 0)
        _, memory = bound.model.encode(prompts.source_BM, mask_BM, **options)
    rows, width = prompts.tokens_BP.shape
    cache = decode.empty(bound, rows, slots, memory, step, shared)._replace(first_B=prompts.first_B)
    place = causal_slots(prompts.start_B, jnp.int32(0), width, width)._replace(shared=shared, end_B=prompts.end_B)
    if not bound.model.arch.count_padding and bound.model.arch.prompt_positions != "rows":
        place = place._replace(positions_BL=_positions_of_real(prompts, bound.model.arch.pad_id))
    return decode.extend(bound, prompts.tokens_BP, cache, place)


def _positions_of_real(prompts: Prompts[jax.Array], pad_id: int) -> jax.Array:
    """Number the tokens that are not padding, relative to `first_B`; masked tokens before a prompt have numbers too."""
    width = prompts.tokens_BP.shape[1]
    real_BP = (prompts.tokens_BP != pad_id) & (jnp.arange(width) >= prompts.start_B[:, None])
    positions_BP = jnp.cumsum(real_BP, axis=1) - 1
    if prompts.first_B is None:
        return positions_BP
    seen = seen_prompts(prompts)
    masked_BW = jnp.arange(seen.prompt_RW.shape[1]) < seen.counted_R[:, None]
    numbered_BW = masked_BW & (seen.prompt_RW != NO_TOKEN) & (seen.prompt_RW != pad_id)
    return positions_BP + (numbered_BW.sum(1) - prompts.first_B)[:, None]


def predict(bound: BoundModel, x_RLD: jax.Array) -> jax.Array:
    """Compute next-token logits [R, V] after the last of the states [R, L, D]."""
    return decode.predict(bound, x_RLD[:, -1:])[:, 0]


def row_keys(prompts: Prompts[jax.Array], seed_B: jax.Array, copies: int) -> jax.Array:
    """Derive a random key for each row [R]. Copies of a prompt draw as equal prompts in one batch do."""
    number_BC = prompts.digest_B2[:, 1:] * copies + jnp.arange(copies, dtype=jnp.uint32)

    def one(seed: jax.Array, digest: jax.Array, number: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), digest), number)

    keys_BC = jax.vmap(jax.vmap(one, (None, None, 0)))(seed_B, prompts.digest_B2[:, 0], number_BC)
    return keys_BC.reshape(-1)


def repeat_cache(cache: Cache, rows: int, copies: int, stacked: bool) -> Cache:
    """Repeat each row of a cache `copies` times; `stacked` if its arrays have a leading layer axis."""
    if copies == 1:
        return cache

    def repeat(x: jax.Array) -> jax.Array:
        if stacked:
            return jnp.repeat(x, copies, axis=1)
        return jnp.repeat(x.reshape(rows, -1, *x.shape[-2:]), copies, axis=0).reshape(-1, *x.shape[1:])

    keys, values, cross_keys, cross_values = jax.tree.map(repeat, tuple(cache[:4]))

    def rows_of(x: jax.Array | None) -> jax.Array | None:
        return None if x is None else jnp.repeat(x, copies, axis=0)

    return Cache(keys, values, cross_keys, cross_values, rows_of(cache.memory_mask_BM), rows_of(cache.first_B))


def seen_prompts(prompts: Prompts[jax.Array]) -> Seen:
    """Return the prompts as logits processors see them: `prompts.seen`, or else the tokens that are not padding."""
    if prompts.seen is not None:
        return prompts.seen
    real_BP = jnp.arange(prompts.tokens_BP.shape[1]) >= prompts.start_B[:, None]
    source_BM, mask_BM = prompts.source_BM, prompts.source_mask_BM
    if source_BM is not None and mask_BM is not None:
        source_BM = jnp.where(mask_BM > 0, source_BM, NO_TOKEN)
    return Seen(jnp.where(real_BP, prompts.tokens_BP, NO_TOKEN), prompts.start_B, source_BM)


def prefill(bound: BoundModel, plan: DecodeSpec, prompts: Prompts[jax.Array], settings: Settings) -> DecodeState:
    """Program of Engine.prefill."""
    x_BPD, cache = encode_prompts(bound, prompts, plan.slots)
    copies, width = plan.copies, prompts.tokens_BP.shape[1]
    repeat = functools.partial(jnp.repeat, repeats=copies, axis=0)
    logits_RV = repeat(predict(bound, x_BPD))
    tokens_RS = jnp.full((len(logits_RV), plan.slots), settings["pad"], jnp.int32)

    def record(*shape: int) -> jax.Array:
        return jnp.zeros((*tokens_RS.shape, *shape), jnp.float32)

    best = (record(plan.best).astype(jnp.int32), record(plan.best)) if plan.best else (None, None)
    state = DecodeState(
        tokens_RS=tokens_RS.at[:, :width].set(repeat(prompts.tokens_BP)),
        start_R=repeat(prompts.start_B),
        width=jnp.int32(width),
        length=jnp.int32(width),
        finished_R=~repeat(prompts.real_B),
        keys_R=row_keys(prompts, settings["seed_B"], copies),
        seen=jax.tree.map(repeat, seen_prompts(prompts)),
        cache=repeat_cache(cache, len(prompts.start_B), copies, bound.blocks is None),
        records=Records(record() if plan.logprobs else None, *best),
    )
    return sample_next(plan, state, logits_RV, settings)


# --- the decoding loop ------------------------------------------------------------------------------------------------


def decode_until(
    bound: BoundModel, plan: DecodeSpec, state: DecodeState, settings: Settings, until: jax.Array
) -> DecodeState:
    """Program of Engine.decode_until."""

    def body(state: DecodeState) -> DecodeState:
        slot = state.length - 1

        def extended(cache: Cache) -> tuple[jax.Array, Cache]:
            token_R1 = jax.lax.dynamic_slice_in_dim(state.tokens_RS, slot, 1, axis=1)
            return decode.extend(bound, token_R1, cache, causal_slots(state.start_R, slot, 1, plan.slots))

        def renewed(cache: Cache) -> tuple[jax.Array, Cache]:
            place = causal_slots(state.start_R, jnp.int32(0), plan.slots, plan.slots)
            place = place._replace(end_B=jnp.full_like(state.start_R, state.length))
            x_RSD, cache = decode.extend(bound, state.tokens_RS, cache, place)
            return jax.lax.dynamic_slice_in_dim(x_RSD, slot, 1, axis=1), cache

        if after := bound.model.arch.renewed_after:
            crosses = (slot - state.start_R).max() == after
            x_R1D, cache = jax.lax.cond(crosses, renewed, extended, state.cache)
        else:
            x_R1D, cache = extended(state.cache)
        return sample_next(plan, state._replace(cache=cache), predict(bound, x_R1D), settings)

    def unfinished(state: DecodeState) -> jax.Array:
        return (state.length < until) & ~state.finished_R.all()

    return jax.lax.while_loop(unfinished, body, state)


def sample_next(plan: DecodeSpec, state: DecodeState, logits_RV: jax.Array, settings: Settings) -> DecodeState:
    """Choose the next token of each row; finished rows get padding."""
    history, slot = state.history(), state.length
    scores_RV = logits_processors.apply(logits_RV, history, settings["rules"])
    if plan.sample:
        keys_R = jax.vmap(jax.random.fold_in, (0, None))(state.keys_R, slot - state.width)
        token_R = sampling.draw(scores_RV, settings["filters"], keys_R, plan.candidates)
    else:
        token_R = sampling.best(scores_RV)
    token_R = jnp.where(state.finished_R, settings["pad"], token_R)
    ended_R = (token_R[:, None] == settings["ends_E"]).any(1)

    def put(rows: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(rows, new[:, None], slot, axis=1)

    return state._replace(
        tokens_RS=put(state.tokens_RS, token_R),
        length=slot + 1,
        finished_R=state.finished_R | ended_R,
        records=_record(plan, state.records, logits_RV, token_R, put),
    )


def _record(plan: DecodeSpec, records: Records, logits_RV: jax.Array, token_R: jax.Array, put: Any) -> Records:
    if not plan.logprobs:
        return records
    log_RV = jax.nn.log_softmax(logits_RV, axis=1)
    logprob_RS = put(records.logprob_RS, jnp.take_along_axis(log_RV, token_R[:, None], axis=1)[:, 0])
    if not plan.best:
        return Records(logprob_RS)
    top_RT, ids_RT = jax.lax.top_k(log_RV, plan.best)
    return Records(logprob_RS, put(records.best_RST, ids_RT), put(records.best_logprob_RST, top_RT))
