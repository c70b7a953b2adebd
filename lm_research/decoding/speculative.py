"""Speculative decoding (Leviathan et al. 2022): a small model drafts several tokens, and the model verifies them at once.

A drafted token x is kept with probability min(1, p(x) / q(x)), where p is the model's filtered distribution and q the draft's;
the first rejected token is drawn again from max(0, p - q). The result is distributed as p. Without sampling, a token is kept
if it is the model's best. Rows keep different numbers of tokens, so each row has its own length.

Legend: B rows, S slots, J drafted tokens, L = J + 1, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm_research.decoding import logits_processors, sampling
from lm_research.decoding.engine import Settings, causal_slots, encode_prompts, row_keys, seen_prompts
from lm_research.decoding.logits_processors import History, Seen
from lm_research.decoding.prompts import Prompts
from lm_research.models import decode
from lm_research.models.decode import BoundModel, Cache
from lm_research.models.definition import ModelDefinition


@dataclasses.dataclass(frozen=True)
class SpeculativePlan:
    """Static arguments of a search, which it is compiled for.

    Attributes:
      slots: S, J + 1 more than the number of prompt and new tokens.
      ahead: J, drafted tokens per round.
      copies: rows per prompt.
      sample: draw tokens instead of taking the most likely one.
      draft: the draft model.
    """

    slots: int
    ahead: int
    copies: int
    sample: bool
    draft: ModelDefinition


class Progress(NamedTuple):
    """State of the loop; the latest token of each row is in neither cache."""

    tokens_BS: jax.Array
    start_B: jax.Array
    length_B: jax.Array
    width: jax.Array
    finished_B: jax.Array
    keys_B: jax.Array
    cache: Cache
    draft_cache: Cache
    seen: Seen
    rounds: jax.Array  # calls of the model


def search(
    bound: BoundModel, plan: SpeculativePlan, prompts: Prompts[jax.Array], settings: Settings, draft_params: Any
) -> Progress:
    """Generate settings["max_new"] new tokens per row, or up to J more, which the caller truncates."""
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
    # The last prompt token is read again with the first drafted ones, which gives the same keys and values.
    # Rejected drafts also take slots, so both caches are sized for J + 1 tokens at once.
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
        seen_prompts(prompts),
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
    probs_BLV = jnp.stack(
        [
            distribution(plan, _history(progress, tokens_BS, number), logits_BLV[:, number], settings)
            for number in range(plan.ahead + 1)
        ],
        axis=1,
    )
    keys_B = jax.vmap(jax.random.fold_in)(progress.keys_B, 2 * progress.length_B + 1)
    kept_B, next_B = accept(checked_BL[:, 1:], draft_BJV, probs_BLV, keys_B)
    put = jax.vmap(lambda row, token, at: row.at[at].set(token))
    tokens_BS = put(tokens_BS, next_B, progress.length_B + kept_B)
    return _close(plan, progress, tokens_BS, kept_B + 1, settings)._replace(cache=cache, draft_cache=draft_cache)


def _draft(
    draft: BoundModel, plan: SpeculativePlan, progress: Progress, settings: Settings
) -> tuple[jax.Array, jax.Array, Cache]:
    """Draft J tokens: tokens_BS with them, their distributions [B, J, V], and the draft model's cache with all of them."""
    tokens_BS, cache, probs = progress.tokens_BS, progress.draft_cache, []
    put = jax.vmap(lambda row, token, at: row.at[at].set(token))
    for number in range(plan.ahead + 1):  # the last step only fills the cache
        slot_B = progress.length_B - 1 + number
        place = causal_slots(progress.start_B, slot_B, 1, plan.slots)
        x_B1D, cache = decode.extend(draft, _slice(tokens_BS, slot_B, 1), cache, place)
        if number == plan.ahead:
            break
        logits_BV = decode.predict(draft, x_B1D)[:, 0]
        probs_BV = distribution(plan, _history(progress, tokens_BS, number), logits_BV, settings)
        probs.append(probs_BV)
        keys_B = jax.vmap(jax.random.fold_in)(progress.keys_B, 2 * (slot_B + 1))
        token_B = jax.vmap(jax.random.categorical)(keys_B, jnp.log(probs_BV)).astype(jnp.int32)
        tokens_BS = put(tokens_BS, token_B, slot_B + 1)
    return tokens_BS, jnp.stack(probs, axis=1), cache


def distribution(plan: SpeculativePlan, history: History, logits_BV: jax.Array, settings: Settings) -> jax.Array:
    """Compute the probabilities [B, V] from which a token is drawn; one-hot without sampling."""
    scores_BV = logits_processors.apply(logits_BV, history, settings["rules"])
    if plan.sample:
        return jax.nn.softmax(sampling.apply(scores_BV, settings["filters"]), axis=1)
    return jax.nn.one_hot(sampling.best(scores_BV), scores_BV.shape[1], dtype=jnp.float32)


def accept(
    drafted_BJ: jax.Array, draft_BJV: jax.Array, probs_BLV: jax.Array, keys_B: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Accept or reject drafted tokens: how many are kept [B], and the token after them [B].

    Args:
      drafted_BJ: tokens drawn from `draft_BJV`.
      draft_BJV: the draft model's distributions.
      probs_BLV: the model's distributions at the same positions and the next one.
      keys_B: a random key for each row.
    """
    ahead = drafted_BJ.shape[1]

    def of_drafted(probs: jax.Array) -> jax.Array:
        return jnp.take_along_axis(probs, drafted_BJ[..., None], axis=2)[..., 0]

    uniform_BJ = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 0), (ahead,)))(keys_B)
    keeps_BJ = uniform_BJ * of_drafted(draft_BJV) < of_drafted(probs_BLV[:, :ahead])
    kept_B = jnp.cumprod(keeps_BJ, axis=1).sum(1)

    def at_kept(probs: jax.Array) -> jax.Array:
        return jnp.take_along_axis(probs, kept_B[:, None, None], axis=1)[:, 0]

    zeros_B1V = jnp.zeros_like(draft_BJV[:, :1])  # if all drafts are kept, the next token is drawn from p itself
    left_BV = jnp.maximum(at_kept(probs_BLV) - at_kept(jnp.concatenate([draft_BJV, zeros_B1V], axis=1)), 0.0)
    left_BV = jnp.where(left_BV.sum(1, keepdims=True) > 0, left_BV, at_kept(probs_BLV))  # p = q up to rounding

    def draw(key: jax.Array, left_V: jax.Array) -> jax.Array:
        return jax.random.categorical(jax.random.fold_in(key, 1), jnp.log(left_V))

    return kept_B, jax.vmap(draw)(keys_B, left_BV).astype(jnp.int32)


def _close(
    plan: SpeculativePlan, progress: Progress, tokens_BS: jax.Array, more_B: jax.Array, settings: Settings
) -> Progress:
    """Append `more_B` tokens of tokens_BS, up to the first end token among them; finished rows do not change."""
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
    return progress.seen.history(tokens_BS, progress.width, progress.length_B - progress.width + more)


def _slice(x_BS: jax.Array, first_B: jax.Array, count: int) -> jax.Array:
    return jax.vmap(lambda row, first: jax.lax.dynamic_slice_in_dim(row, first, count))(x_BS, first_B)
