"""Speculative decoding (Leviathan et al. 2022): a small model drafts some tokens, the model checks them all at once.

A drafted token x is kept with probability min(1, p(x) / q(x)), p being the model's filtered distribution and q the draft's;
the first that is not is drawn again from max(0, p - q). What comes out is distributed as p. Without sampling a
token is kept where it is the model's best. Rows keep different numbers of tokens, so each has slots of its own.

Legend: B rows, S slots, J drafted tokens, L = J + 1, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm_research.decoding import logits_processors, sampling
from lm_research.decoding.engine import Settings, causal_slots, encode_prompts, row_keys, source_tokens
from lm_research.decoding.logits_processors import History
from lm_research.decoding.prompts import Prompts
from lm_research.models import decode
from lm_research.models.decode import BoundModel, Cache
from lm_research.models.definition import ModelDefinition


@dataclasses.dataclass(frozen=True)
class SpeculativePlan:
    """What is compiled for.

    Attributes:
      slots: S, with J + 1 more than prompt and new tokens take.
      ahead: J.
      copies: rows that continue each prompt.
      sample: draw, or take the best.
      draft: the draft model.
    """

    slots: int
    ahead: int
    copies: int
    sample: bool
    draft: ModelDefinition


class Progress(NamedTuple):
    """Texts on their way; the last token of each row is in neither cache."""

    tokens_BS: jax.Array
    start_B: jax.Array
    length_B: jax.Array
    width: jax.Array
    finished_B: jax.Array
    keys_B: jax.Array
    cache: Cache
    draft_cache: Cache
    source_BM: jax.Array | None
    rounds: jax.Array  # calls of the model


def search(
    bound: BoundModel, plan: SpeculativePlan, prompts: Prompts[jax.Array], settings: Settings, draft_params: Any
) -> Progress:
    """Texts of at most settings["max_new"] new tokens (a row may run a few over; cut it)."""
    draft = decode.bind(plan.draft, draft_params)
    width = prompts.tokens_BP.shape[1]
    prompts = jax.tree.map(lambda x: jnp.repeat(x, plan.copies, axis=0), prompts)
    digest_B2 = prompts.digest_B2 * jnp.array([1, plan.copies], jnp.uint32)
    copy_B = jnp.arange(len(digest_B2), dtype=jnp.uint32) % plan.copies
    keys_B = row_keys(
        prompts._replace(digest_B2=digest_B2.at[:, 1].add(copy_B)), jnp.repeat(settings["seed_B"], plan.copies), 1
    )
    rows = len(prompts.start_B)
    tokens_BS = jnp.full((rows, plan.slots), settings["pad"], jnp.int32).at[:, :width].set(prompts.tokens_BP)
    # The last prompt token is read again with the first drafted ones; its keys and values come out the same.
    # Drafted tokens that are refused have taken slots, too, so both keep as if J + 1 came at once.
    _, cache = encode_prompts(bound, prompts, plan.slots, plan.ahead + 1)
    _, draft_cache = encode_prompts(draft, prompts, plan.slots, plan.ahead + 1)
    progress = Progress(
        tokens_BS,
        prompts.start_B,
        jnp.full(rows, width, jnp.int32),
        jnp.int32(width),
        ~prompts.real_B,
        keys_B,
        cache,
        draft_cache,
        source_tokens(prompts),
        jnp.int32(0),
    )

    def unfinished(progress: Progress) -> jax.Array:
        return ~progress.finished_B.all()

    def body(progress: Progress) -> Progress:
        return _round(bound, draft, plan, progress, settings)

    return jax.lax.while_loop(unfinished, body, progress)


def _round(
    bound: BoundModel, draft: BoundModel, plan: SpeculativePlan, progress: Progress, settings: Settings
) -> Progress:
    tokens_BS, draft_BJV, draft_cache = _draft(draft, plan, progress, settings)
    checked_BL = _slice(tokens_BS, progress.length_B - 1, plan.ahead + 1)
    place = causal_slots(progress.start_B, progress.length_B - 1, plan.ahead + 1, plan.slots)
    x_BLD, cache = decode.extend(bound, checked_BL, progress.cache, place)
    logits_BLV = decode.predict(bound, x_BLD)
    share_BLV = jnp.stack(
        [
            distribution(plan, _history(progress, tokens_BS, number), logits_BLV[:, number], settings)
            for number in range(plan.ahead + 1)
        ],
        axis=1,
    )
    keys_B = jax.vmap(jax.random.fold_in)(progress.keys_B, 2 * progress.length_B + 1)
    kept_B, next_B = accept(checked_BL[:, 1:], draft_BJV, share_BLV, keys_B)
    put = jax.vmap(lambda row, token, at: row.at[at].set(token))
    tokens_BS = put(tokens_BS, next_B, progress.length_B + kept_B)
    return _close(plan, progress, tokens_BS, kept_B + 1, settings)._replace(cache=cache, draft_cache=draft_cache)


def _draft(
    draft: BoundModel, plan: SpeculativePlan, progress: Progress, settings: Settings
) -> tuple[jax.Array, jax.Array, Cache]:
    """Tokens with J drafted ones, their distributions [B, J, V], and the draft's cache with all of them."""
    tokens_BS, cache, shares = progress.tokens_BS, progress.draft_cache, []
    put = jax.vmap(lambda row, token, at: row.at[at].set(token))
    for number in range(plan.ahead + 1):  # the last only for the cache
        slot_B = progress.length_B - 1 + number
        place = causal_slots(progress.start_B, slot_B, 1, plan.slots)
        x_B1D, cache = decode.extend(draft, _slice(tokens_BS, slot_B, 1), cache, place)
        if number == plan.ahead:
            break
        logits_BV = decode.predict(draft, x_B1D)[:, 0]
        share_BV = distribution(plan, _history(progress, tokens_BS, number), logits_BV, settings)
        shares.append(share_BV)
        keys_B = jax.vmap(jax.random.fold_in)(progress.keys_B, 2 * (slot_B + 1))
        token_B = jax.vmap(jax.random.categorical)(keys_B, jnp.log(share_BV)).astype(jnp.int32)
        tokens_BS = put(tokens_BS, token_B, slot_B + 1)
    return tokens_BS, jnp.stack(shares, axis=1), cache


def distribution(plan: SpeculativePlan, history: History, logits_BV: jax.Array, settings: Settings) -> jax.Array:
    """Probabilities [B, V] that a token is drawn from; all of it on the best one without sampling."""
    scores_BV = logits_processors.apply(logits_BV, history, settings["rules"])
    if plan.sample:
        return jax.nn.softmax(sampling.apply(scores_BV, settings["filters"]), axis=1)
    return jax.nn.one_hot(sampling.best(scores_BV), scores_BV.shape[1], dtype=jnp.float32)


def accept(
    drafted_BJ: jax.Array, draft_BJV: jax.Array, share_BLV: jax.Array, keys_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """How many drafted tokens are kept [B], and the token after them [B].

    Args:
      drafted_BJ: tokens drawn from `draft_BJV`.
      draft_BJV: the draft's distributions.
      share_BLV: the model's at the same places and the one after.
      keys_B: a key for each row.
    """
    ahead = drafted_BJ.shape[1]

    def of_drafted(shares: jax.Array) -> jax.Array:
        return jnp.take_along_axis(shares, drafted_BJ[..., None], axis=2)[..., 0]

    uniform_BJ = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 0), (ahead,)))(keys_B)
    keeps_BJ = uniform_BJ * of_drafted(draft_BJV) < of_drafted(share_BLV[:, :ahead])
    kept_B = jnp.cumprod(keeps_BJ, axis=1).sum(1)

    def at(shares: jax.Array) -> jax.Array:
        return jnp.take_along_axis(shares, kept_B[:, None, None], axis=1)[:, 0]

    nothing_B1V = jnp.zeros_like(draft_BJV[:, :1])  # behind the last drafted one nothing was refused
    left_BV = jnp.maximum(at(share_BLV) - at(jnp.concatenate([draft_BJV, nothing_B1V], axis=1)), 0.0)
    left_BV = jnp.where(left_BV.sum(1, keepdims=True) > 0, left_BV, at(share_BLV))  # equal up to rounding

    def draw(key: jax.Array, left_V: jax.Array) -> jax.Array:
        return jax.random.categorical(jax.random.fold_in(key, 1), jnp.log(left_V))

    return kept_B, jax.vmap(draw)(keys_B, left_BV).astype(jnp.int32)


def _close(
    plan: SpeculativePlan, progress: Progress, tokens_BS: jax.Array, more_B: jax.Array, settings: Settings
) -> Progress:
    """Takes `more` tokens over, up to an end among them; finished rows stay as they are."""
    new_BL = _slice(tokens_BS, progress.length_B, plan.ahead + 1)
    counts_BL = jnp.arange(plan.ahead + 1) < more_B[:, None]
    ends_BL = (new_BL[..., None] == settings["ends_E"]).any(2) & counts_BL
    more_B = jnp.where(ends_BL.any(1), ends_BL.argmax(1) + 1, more_B)
    length_B = jnp.where(progress.finished_B, progress.length_B, progress.length_B + more_B)
    full_B = length_B - progress.width >= settings["max_new"]
    tokens_BS = jnp.where(progress.finished_B[:, None], progress.tokens_BS, tokens_BS)
    return progress._replace(
        tokens_BS=tokens_BS,
        length_B=length_B,
        finished_B=progress.finished_B | ends_BL.any(1) | full_B,
        rounds=progress.rounds + 1,
    )


def _history(progress: Progress, tokens_BS: jax.Array, more: int) -> History:
    length_B = progress.length_B + more
    return History(tokens_BS, progress.start_B, length_B, length_B - progress.width, progress.source_BM)


def _slice(x_BS: jax.Array, first_B: jax.Array, count: int) -> jax.Array:
    return jax.vmap(lambda row, first: jax.lax.dynamic_slice_in_dim(row, first, count))(x_BS, first_B)
