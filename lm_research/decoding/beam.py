"""Beam search and diverse (group) beam search, with the rules of transformers for finishing, keeping and stopping.

The beams of a prompt share its row of the cache and its encoder output: they are K tokens with the same position, each of
which attends to the prompt and its own ancestors (an index for each beam and step). Reordering beams therefore moves no keys
or values.

Legend: B prompts, K beams, C candidates of a step, S slots of tokens, P slots of prompts, T steps, V vocabulary, E ends.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm_research.decoding import constrained, logits_processors, sampling
from lm_research.decoding.engine import Settings, encode_prompts, predict, row_keys, seen_prompts
from lm_research.decoding.logits_processors import History, Seen
from lm_research.decoding.prompts import Prompts
from lm_research.models import decode
from lm_research.models.decode import BoundModel, Cache, CacheSlots

# `early_stopping` True: stop as soon as K texts are finished. False: when the best running text, at its present length, is no
# better than the worst finished one. "never": when no running text can become better.
STOP_WHEN_FULL, STOP_BY_HEURISTIC, STOP_WHEN_EXHAUSTED = range(3)
LOW = -1e9  # score of excluded candidates; finite, because sums of such scores are compared


@dataclasses.dataclass(frozen=True)
class BeamPlan:
    """Static arguments of a beam search, which it is compiled for.

    Attributes:
      steps: T, most new tokens that fit.
      beams: K, beams of all groups together.
      groups: number of groups; later groups avoid the tokens of earlier ones (Vijayakumar et al. 2016).
      ends: number of end tokens, which determines the number of candidates.
      sample: draw candidates without replacement instead of taking the best.
      constrained: texts must contain given words, see constrained.py.
    """

    steps: int
    beams: int
    groups: int = 1
    ends: int = 1
    sample: bool = False
    constrained: bool = False


class Beams(NamedTuple):
    """Running and finished texts of one group; scores are sums of log-probabilities, length-normalized for finished texts."""

    tokens_BKS: jax.Array
    scores_BK: jax.Array
    done_tokens_BKS: jax.Array
    done_scores_BK: jax.Array
    done_length_BK: jax.Array  # new tokens
    done_BK: jax.Array
    open_B: jax.Array  # whether a running text may still beat a finished one


class Candidates(NamedTuple):
    """Candidate continuations of a step, best first: sum of log-probabilities, index of the continued beam, token."""

    scores_BC: jax.Array
    parent_BC: jax.Array
    token_BC: jax.Array


class SearchState(NamedTuple):
    """State of a search after `new` steps."""

    groups: tuple[Beams, ...]
    ancestor_BKT: jax.Array  # for each beam and step, the beam whose key it attends to
    new: jax.Array
    going: jax.Array  # whether to continue
    start_B: jax.Array
    keys_B: jax.Array
    seen: Seen
    cache: Cache


def search(bound: BoundModel, plan: BeamPlan, prompts: Prompts[jax.Array], settings: Settings) -> tuple[jax.Array, ...]:
    """Find the K best texts of each prompt in one program; returns as `ranked`."""
    state = prefill(bound, plan, prompts, settings)
    return ranked(bound, plan, search_until(bound, plan, state, settings, jnp.int32(plan.steps)))


def prefill(bound: BoundModel, plan: BeamPlan, prompts: Prompts[jax.Array], settings: Settings) -> SearchState:
    """Read the prompts and take the first step."""
    width, size = prompts.tokens_BP.shape[1], plan.beams // plan.groups
    x_BPD, cache = encode_prompts(bound, prompts, width + plan.beams * plan.steps, plan.beams, width)
    rows = len(prompts.start_B)
    empty_BKS = jnp.full((rows, size, width + plan.steps), settings["fill"], jnp.int32)
    empty_BKS = empty_BKS.at[:, :, :width].set(prompts.tokens_BP[:, None])
    low_BK = jnp.full((rows, size), LOW, jnp.float32)
    beams = Beams(
        empty_BKS,
        low_BK.at[:, 0].set(0.0),
        empty_BKS,
        low_BK,
        jnp.zeros((rows, size), jnp.int32),
        jnp.zeros((rows, size), bool),
        prompts.real_B,
    )
    state = SearchState(
        groups=(beams,) * plan.groups,
        ancestor_BKT=jnp.zeros((rows, plan.beams, plan.steps), jnp.int32),
        new=jnp.int32(0),
        going=jnp.bool_(True),
        start_B=prompts.start_B,
        keys_B=row_keys(prompts, settings["seed_B"], 1),
        seen=seen_prompts(prompts),
        cache=cache,
    )
    logits_BKV = jnp.repeat(predict(bound, x_BPD)[:, None], plan.beams, axis=1)
    return step(plan, state, logits_BKV, settings)


def search_until(
    bound: BoundModel, plan: BeamPlan, state: SearchState, settings: Settings, until: jax.Array
) -> SearchState:
    """Continue until texts have `until` new tokens or the search is over."""
    width = state.groups[0].tokens_BKS.shape[2] - plan.steps

    def extended(state: SearchState) -> tuple[jax.Array, SearchState]:
        tokens_BK = jnp.concatenate([beams.tokens_BKS[:, :, width + state.new - 1] for beams in state.groups], axis=1)
        x_BKD, cache = decode.extend(bound, tokens_BK, state.cache, _place(plan, state, width))
        return x_BKD, state._replace(cache=cache)

    def body(state: SearchState) -> SearchState:
        if after := bound.model.arch.renewed_after:
            crosses = (width + state.new - 1 - state.start_B).max() == after
            renew = functools.partial(_renewed, bound, plan, width)
            x_BKD, state = jax.lax.cond(crosses, renew, extended, state)
        else:
            x_BKD, state = extended(state)
        return step(plan, state, decode.predict(bound, x_BKD), settings)

    return jax.lax.while_loop(lambda state: state.going & (state.new < until), body, state)


def ranked(bound: BoundModel, plan: BeamPlan, state: SearchState) -> tuple[jax.Array, ...]:
    """Rank the finished texts, best first: tokens [B, K, S], scores [B, K], and numbers of new tokens [B, K]."""
    done = (
        jnp.concatenate(parts, axis=1)
        for parts in zip(*((b.done_tokens_BKS, b.done_scores_BK, b.done_length_BK) for b in state.groups), strict=True)
    )
    tokens_BKS, scores_BK, length_BK = done
    order_BK = jnp.argsort(-scores_BK, axis=1, stable=True)
    return _pick(tokens_BKS, order_BK), _pick(scores_BK, order_BK), _pick(length_BK, order_BK)


def _place(plan: BeamPlan, state: SearchState, width: int) -> CacheSlots:
    """Place the latest token of all beams: K slots, each attending to the prompt and to one slot of each step.

    With P prompt slots, beam k of step t is in slot P + t * K + k and has position P + t (from the row's start).
    """
    step, beams = state.new - 1, plan.beams
    prompt_BKP = jnp.arange(width) >= state.start_B[:, None, None]
    prompt_BKP = jnp.broadcast_to(prompt_BKP, (len(state.start_B), beams, width))
    ancestor_BKTK = state.ancestor_BKT[..., None] == jnp.arange(beams)
    ancestor_BKTK &= (jnp.arange(plan.steps) <= step)[:, None]
    visible_BKS = jnp.concatenate([prompt_BKP, ancestor_BKTK.reshape(*prompt_BKP.shape[:2], -1)], axis=2)
    slot_S = jnp.arange(visible_BKS.shape[2])
    place_S = jnp.where(slot_S < width, slot_S, width + (slot_S - width) // beams)
    own = width + step
    positions_BK = jnp.repeat((own - state.start_B)[:, None], beams, axis=1)
    distance = jnp.broadcast_to(own - place_S, (1, beams, len(slot_S)))
    return CacheSlots(width + step * beams, positions_BK, visible_BKS, distance, width)


def _renewed(bound: BoundModel, plan: BeamPlan, width: int, state: SearchState) -> tuple[jax.Array, SearchState]:
    """Compute the whole cache again: states of the latest tokens [B, K, D], and the state in which a beam's ancestors are its own slots."""
    tokens_BKS = jnp.concatenate([beams.tokens_BKS for beams in state.groups], axis=1)
    rows, count = len(tokens_BKS), width + plan.steps * plan.beams
    generated_BX = tokens_BKS[:, :, width:].swapaxes(1, 2).reshape(rows, -1)
    tokens_BS = jnp.concatenate([tokens_BKS[:, 0, :width], generated_BX], axis=1)
    slot_S = jnp.arange(count)
    beam_S = jnp.where(slot_S < width, -1, (slot_S - width) % plan.beams)
    place_S = jnp.where(slot_S < width, slot_S, width + (slot_S - width) // plan.beams)
    visible_SS = (place_S <= place_S[:, None]) & ((beam_S < 0) | (beam_S == beam_S[:, None]))
    visible_BSS = visible_SS & (slot_S >= state.start_B[:, None, None])
    positions_BS = jnp.maximum(place_S - state.start_B[:, None], 0)
    end_B = jnp.full_like(state.start_B, width + state.new * plan.beams)
    place = CacheSlots(jnp.int32(0), positions_BS, visible_BSS, (place_S[:, None] - place_S)[None], width, end_B)
    x_BSD, cache = decode.extend(bound, tokens_BS, state.cache, place)
    x_BKD = jax.lax.dynamic_slice_in_dim(x_BSD, width + (state.new - 1) * plan.beams, plan.beams, axis=1)
    own_BKT = jnp.broadcast_to(jnp.arange(plan.beams)[:, None], state.ancestor_BKT.shape)
    return x_BKD, state._replace(cache=cache, ancestor_BKT=own_BKT)


def step(plan: BeamPlan, state: SearchState, logits_BKV: jax.Array, settings: Settings) -> SearchState:
    """Extend all beams by one token, group after group."""
    size, vocab = plan.beams // plan.groups, logits_BKV.shape[2]
    chosen_BV = jnp.zeros((len(logits_BKV), vocab), jnp.float32)
    groups, parents, going = [], [], jnp.bool_(False)
    for number, beams in enumerate(state.groups):
        log_BKV = jax.nn.log_softmax(logits_BKV[:, number * size : (number + 1) * size], axis=2)
        log_BKV = log_BKV - settings["diversity_penalty"] * chosen_BV[:, None] if number else log_BKV
        log_BKV = _apply_rules(plan, state, beams, log_BKV, settings)
        beams, parent_BK, alive = advance(plan, state, beams, log_BKV, settings, number)
        token_BK = jax.lax.dynamic_index_in_dim(
            beams.tokens_BKS, beams.tokens_BKS.shape[2] - plan.steps + state.new, axis=2, keepdims=False
        )
        chosen_BV += jax.nn.one_hot(token_BK, vocab).sum(1) if number + 1 < plan.groups else 0.0
        groups.append(beams)
        parents.append(parent_BK + number * size)
        going |= alive
    ancestor_BKT = _pick(state.ancestor_BKT, jnp.concatenate(parents, axis=1))
    own_BK1 = jnp.broadcast_to(jnp.arange(plan.beams), ancestor_BKT.shape[:2])[..., None]
    ancestor_BKT = jax.lax.dynamic_update_slice_in_dim(ancestor_BKT, own_BK1, state.new, axis=2)
    return state._replace(groups=tuple(groups), ancestor_BKT=ancestor_BKT, new=state.new + 1, going=going)


def _apply_rules(plan: BeamPlan, state: SearchState, beams: Beams, log_BKV: jax.Array, settings: Settings) -> jax.Array:
    rows_RV = log_BKV.reshape(-1, log_BKV.shape[2])
    history = history_of(plan, state, beams.tokens_BKS)
    rows_RV = logits_processors.apply(rows_RV, history, settings["rules"])
    if plan.sample:  # keep one more candidate than can end a text
        rows_RV = sampling.apply(rows_RV, settings["filters"], keep=plan.ends + 1)
    return rows_RV.reshape(log_BKV.shape)


def history_of(plan: BeamPlan, state: SearchState, tokens_BKS: jax.Array, more: int = 0) -> History:
    """Histories of all texts as rows; the texts have `more` new tokens beyond those that the state counts."""
    copies, slots = tokens_BKS.shape[1:]
    repeat = functools.partial(jnp.repeat, repeats=copies, axis=0)
    new_R = jnp.broadcast_to(state.new + more, len(state.start_B) * copies)
    seen: Seen = jax.tree.map(repeat, state.seen)
    return seen.history(tokens_BKS.reshape(-1, slots), slots - plan.steps, new_R)


def advance(
    plan: BeamPlan, state: SearchState, beams: Beams, log_BKV: jax.Array, settings: Settings, group: int = 0
) -> tuple[Beams, jax.Array, jax.Array]:
    """Take a step of one group: its new beams, the beam that each continues [B, K], and whether to continue."""
    size, new = log_BKV.shape[1], state.new
    totals_BKV, ends_E = log_BKV + beams.scores_BK[..., None], settings["ends_E"]
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(state.keys_B, new * plan.groups + group) if plan.sample else None
    count = max(2, 1 + plan.ends) * size
    slot = beams.tokens_BKS.shape[2] - plan.steps + new
    last = new + 1 >= settings["max_new"]

    def continued(candidates: Candidates) -> jax.Array:
        tokens_BCS = _pick(beams.tokens_BKS, candidates.parent_BC)
        return jax.lax.dynamic_update_slice_in_dim(tokens_BCS, candidates.token_BC[..., None], slot, axis=2)

    if plan.constrained:
        inner = history_of(plan, state, beams.tokens_BKS)
        candidates = constrained.candidates(top(totals_BKV, count), totals_BKV, inner, settings["words"], ends_E)
    else:
        candidates = top(totals_BKV, count, keys_B)
    tokens_BCS, scores_BC = continued(candidates), candidates.scores_BC
    hits_BC = (candidates.token_BC[..., None] == ends_E).any(2) | last
    if plan.constrained:
        outer = history_of(plan, state, tokens_BCS, more=1)
        left = settings["max_new"] - new - 1
        scores_BC, keep_BK = constrained.allocate(scores_BC, hits_BC, outer, settings["words"], left, size)
        finishes_BC = hits_BC
    else:
        keep_BK = jax.lax.top_k(jnp.where(hits_BC, scores_BC + LOW, scores_BC), size)[1]
        finishes_BC = hits_BC & (jnp.arange(scores_BC.shape[1]) < size)
    running_BC = jnp.where(hits_BC, scores_BC + LOW, scores_BC)
    beams = _finish(beams, tokens_BCS, scores_BC, finishes_BC, new + 1, settings)
    beams = beams._replace(tokens_BKS=_pick(tokens_BCS, keep_BK), scores_BK=_pick(running_BC, keep_BK))
    beams = beams._replace(open_B=beams.open_B & may_improve(beams, new + 1, settings))
    full = beams.done_BK.all() & (settings["early_stopping"] == STOP_WHEN_FULL)
    return beams, _pick(candidates.parent_BC, keep_BK), beams.open_B.any() & ~full & ~hits_BC.all()


def top(totals_BKV: jax.Array, count: int, keys_B: jax.Array | None = None) -> Candidates:
    """Select the `count` best continuations of each prompt; with keys, draw as many without replacement.

    The best of all are among the `count` best of each beam. The best after adding Gumbel noise are a draw without replacement
    (Vieira 2014).
    """
    rows, beams, vocab = totals_BKV.shape
    ranked_BKV = totals_BKV
    if keys_B is not None:
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (beams, vocab)))(keys_B)
        ranked_BKV = totals_BKV + noise
    each = min(count, vocab)
    ranks_BKC, token_BKC = jax.lax.top_k(ranked_BKV, each)
    _, place_BC = jax.lax.top_k(ranks_BKC.reshape(rows, -1), min(count, beams * each))
    token_BC, parent_BC = _pick(token_BKC.reshape(rows, -1), place_BC), place_BC // each
    scores_BC = jnp.take_along_axis(totals_BKV.reshape(rows, -1), parent_BC * vocab + token_BC, axis=1)
    if keys_B is not None:
        order_BC = jnp.argsort(-scores_BC, axis=1, stable=True)
        scores_BC, parent_BC, token_BC = (_pick(x, order_BC) for x in (scores_BC, parent_BC, token_BC))
    return Candidates(scores_BC, parent_BC, token_BC)


def _finish(
    beams: Beams,
    tokens_BCS: jax.Array,
    scores_BC: jax.Array,
    finishes_BC: jax.Array,
    length: jax.Array,
    settings: Settings,
) -> Beams:
    """Keep the K best of the texts finished before and those that finish now."""
    means_BC = scores_BC / length.astype(jnp.float32) ** settings["length_penalty"]
    shut_B = ~beams.open_B | (beams.done_BK.all(1) & (settings["early_stopping"] == STOP_WHEN_FULL))
    means_BC = means_BC + jnp.where(shut_B[:, None], LOW, 0.0) + jnp.where(finishes_BC, 0.0, LOW)
    scores_BX = jnp.concatenate([beams.done_scores_BK, means_BC], axis=1)
    kept_BK = jax.lax.top_k(scores_BX, beams.done_BK.shape[1])[1]

    def both(old: jax.Array, new: jax.Array) -> jax.Array:
        return _pick(jnp.concatenate([old, new], axis=1), kept_BK)

    return beams._replace(
        done_tokens_BKS=both(beams.done_tokens_BKS, tokens_BCS),
        done_scores_BK=_pick(scores_BX, kept_BK),
        done_length_BK=both(beams.done_length_BK, jnp.broadcast_to(length, scores_BC.shape)),
        done_BK=both(beams.done_BK, finishes_BC),
    )


def may_improve(beams: Beams, length: jax.Array, settings: Settings) -> jax.Array:
    """Whether a running text could still beat the worst finished one [B], by the criterion of `early_stopping`."""
    penalty = settings["length_penalty"]
    length = jnp.where((settings["early_stopping"] == STOP_WHEN_EXHAUSTED) & (penalty > 0), settings["max_new"], length)
    best_B = beams.scores_BK.max(1) / length.astype(jnp.float32) ** penalty
    worst_BK = jnp.where(beams.done_BK, beams.done_scores_BK.min(1, keepdims=True), LOW)
    return (best_B[:, None] > worst_BK).any(1)


def _pick(x_BX: jax.Array, index_BK: jax.Array) -> jax.Array:
    """Select entries of the second axis by index_BK."""
    return jnp.take_along_axis(x_BX, index_BK.reshape(*index_BK.shape, *(1,) * (x_BX.ndim - 2)), axis=1)


def total_length(words: Sequence[Sequence[int]]) -> int:
    """Number of tokens of all words together."""
    return sum(map(len, words))
