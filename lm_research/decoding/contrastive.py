"""Contrastive search (Su et al. 2022): among the most likely tokens, choose the one whose state is least similar to earlier ones.

All candidates of a step run at once, as tokens with the same position that attend to the past and themselves; the keys and
values of the chosen one then move to the slot of that position.

Legend: B rows, S slots, C candidates, D model width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm_research.decoding import logits_processors
from lm_research.decoding.engine import DecodeState, Records, Settings, encode_prompts, row_keys, seen_prompts
from lm_research.decoding.prompts import Prompts
from lm_research.models import decode
from lm_research.models.decode import BoundModel, Cache, CacheSlots


@dataclasses.dataclass(frozen=True)
class ContrastivePlan:
    """Static arguments of a search, which it is compiled for: S, and C (top_k)."""

    slots: int
    candidates: int


class _Search(NamedTuple):
    state: DecodeState
    states_BSD: jax.Array  # of length 1
    logits_BV: jax.Array  # after the latest token


def search(bound: BoundModel, plan: ContrastivePlan, prompts: Prompts[jax.Array], settings: Settings) -> DecodeState:
    """Generate up to settings["max_new"] new tokens for each prompt."""
    spare = plan.candidates  # slots after the last one, for candidates
    x_BPD, cache = encode_prompts(bound, prompts, plan.slots + spare, spare)
    rows, width = prompts.tokens_BP.shape
    tokens_BS = jnp.full((rows, plan.slots), settings["pad"], jnp.int32).at[:, :width].set(prompts.tokens_BP)
    state = DecodeState(
        tokens_BS,
        prompts.start_B,
        jnp.int32(width),
        jnp.int32(width),
        ~prompts.real_B,
        row_keys(prompts, settings["seed_B"], 1),
        seen_prompts(prompts),
        cache,
        Records(),
    )
    states_BSD = jnp.zeros((rows, plan.slots, x_BPD.shape[-1]), jnp.float32).at[:, :width].set(unit(x_BPD))
    logits_BV = decode.predict(bound, x_BPD[:, -1:])[:, 0]

    def unfinished(search: _Search) -> jax.Array:
        state = search.state
        return (state.length - state.width < settings["max_new"]) & ~state.finished_R.all()

    def body(search: _Search) -> _Search:
        return _step(bound, plan, search, settings)

    return jax.lax.while_loop(unfinished, body, _Search(state, states_BSD, logits_BV)).state


def unit(x: jax.Array) -> jax.Array:
    """Scale vectors of the last axis to length 1, in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def degeneration_penalty(states_BCD: jax.Array, past_BSD: jax.Array, seen_BS: jax.Array) -> jax.Array:
    """Compute each candidate's highest cosine similarity with a past state [B, C]; all vectors have length 1."""
    cosine_BCS = jnp.einsum("BCD,BSD->BCS", states_BCD, past_BSD)
    return jnp.where(seen_BS[:, None], cosine_BCS, -jnp.inf).max(2)


def _step(bound: BoundModel, plan: ContrastivePlan, search: _Search, settings: Settings) -> _Search:
    state, slot, count = search.state, search.state.length, plan.candidates
    scores_BV = logits_processors.apply(search.logits_BV, state.history(), settings["rules"])
    probs_BC, token_BC = jax.lax.top_k(jax.nn.softmax(scores_BV, axis=1), count)
    x_BCD, cache = decode.extend(bound, token_BC, state.cache, _place(plan, state))
    logits_BCV = decode.predict(bound, x_BCD)
    penalty_BC = degeneration_penalty(unit(x_BCD), search.states_BSD, _past(state, plan.slots))
    alpha = settings["penalty_alpha"]
    score_BC = jnp.where(probs_BC > 0, (1 - alpha) * probs_BC - alpha * penalty_BC, -jnp.inf)
    chosen_B = score_BC.argmax(1)

    def pick(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, chosen_B.reshape(-1, *(1,) * (x.ndim - 1)), axis=1)[:, 0]

    token_B = jnp.where(state.finished_R, settings["pad"], pick(token_BC))
    ended_B = (token_B[:, None] == settings["ends_E"]).any(1)

    def put(x: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(x, new[:, None], slot, axis=1)

    state = state._replace(
        tokens_RS=put(state.tokens_RS, token_B),
        length=slot + 1,
        finished_R=state.finished_R | ended_B,
        cache=move_chosen(cache, slot, chosen_B, bound.blocks is None),
    )
    return _Search(state, put(search.states_BSD, unit(pick(x_BCD))), pick(logits_BCV))


def _place(plan: ContrastivePlan, state: DecodeState) -> CacheSlots:
    """Place C candidates at the next position, in consecutive slots: each attends to the past and itself."""
    slot_S, candidate_C = jnp.arange(plan.slots + plan.candidates), jnp.arange(plan.candidates)
    past_BS = _past(state, len(slot_S))
    visible_BCS = past_BS[:, None] | (slot_S == state.length + candidate_C[:, None])
    distance = jnp.maximum(state.length - slot_S, 0)
    positions_BC = jnp.repeat((state.length - state.start_R)[:, None], plan.candidates, axis=1)
    return CacheSlots(state.length, positions_BC, visible_BCS, jnp.broadcast_to(distance, (1, *visible_BCS.shape[1:])))


def _past(state: DecodeState, slots: int) -> jax.Array:
    """Which slots hold tokens [B, slots]."""
    slot_S = jnp.arange(slots)
    return (slot_S >= state.start_R[:, None]) & (slot_S < state.length)


def move_chosen(cache: Cache, slot: jax.Array, chosen_B: jax.Array, stacked: bool) -> Cache:
    """Move the keys and values of the chosen candidate, in slot `slot + chosen_B`, to `slot`."""

    def move(x_BGSK: jax.Array) -> jax.Array:
        # The cache of a layer with a sliding window is a ring buffer, so slots are taken modulo its size.
        axis, size = x_BGSK.ndim - 2, x_BGSK.shape[-2]
        chosen = jnp.repeat((slot + chosen_B) % size, len(x_BGSK) // len(chosen_B))  # rows and heads may be one axis
        kept = jnp.take_along_axis(x_BGSK, chosen.reshape(-1, *(1,) * axis, 1), axis=axis)
        return jax.lax.dynamic_update_slice_in_dim(x_BGSK, kept, slot % size, axis)

    layers = jax.tree.map(jax.vmap(move) if stacked else move, (cache.keys, cache.values))
    return cache._replace(keys=layers[0], values=layers[1])
