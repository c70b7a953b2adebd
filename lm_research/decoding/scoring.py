"""How likely a model finds given continuations.

Legend: B rows, L length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.decoding.engine import Engine, encode_prompts
from lm_research.decoding.prompts import Prompts, as_rows, longest, make_prompts
from lm_research.errors import UserError
from lm_research.models import decode
from lm_research.models.decode import BoundModel


def score_rows(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    sources: Sequence[Sequence[int]] | None = None,
    first: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """Log-probability [nats] of each token of each continuation after its prompt; see `judge_rows`."""
    return [log_L for log_L, _ in token_logprobs_of_rows(engine, prompts, continuations, sources, first)]


def token_logprobs_of_rows(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    sources: Sequence[Sequence[int]] | None = None,
    first: Sequence[int] | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each token of each continuation after its prompt: log-probability [nats], and whether it is the likeliest one.

    Args:
      engine: the model.
      prompts: token ids (of an encoder-decoder: the decoder's).
      continuations: token ids, as many rows. The last token of a row is asked for but not read, so needs no position.
      sources: an encoder-decoder's encoder tokens.
      first: the position of each prompt's first token; None is 0.

    Raises:
      UserError: an empty row, or one that is longer than the model's positions.
    """
    prompts, continuations = as_rows("prompts", prompts), as_rows("continuations", continuations)
    rows = [[*prompt, *more] for prompt, more in zip(prompts, continuations, strict=True)]
    log_BL, best_BL = _judge(engine, rows, sources, None, first)
    return [(log_BL[i, -len(more) :], best_BL[i, -len(more) :]) for i, more in enumerate(continuations)]


def score_prompt(engine: Engine, ids: Sequence[int], best: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each token of a prompt but the first (n - 1 of n): log-probability [nats]; ids of the `best` likeliest there, and theirs.

    Raises:
      UserError: less than two tokens, or more than the model's positions.
    """
    (row,) = as_rows("prompt", [ids])
    if len(row) < 2:
        raise UserError("A prompt of one token has none that comes after another. Give a longer one.")
    log_BL, best_BLT, best_log_BLT = _judge(engine, [row], None, best)
    own = slice(1 - len(row), None)
    return log_BL[0, own], best_BLT[0, own], best_log_BLT[0, own]


def _judge(
    engine: Engine, rows: Sequence[Sequence[int]], sources: Any, best: int | None, first: Any = None
) -> list[np.ndarray]:
    """What `_said` finds of all tokens of rows but the first of each, aligned at their ends."""
    arch = engine.definition.arch
    if arch.positions == "learned" and longest(rows) > arch.max_length + 1:
        raise UserError(
            f"A prompt with its continuation has {longest(rows)} tokens, but the model has positions for {arch.max_length}. "
            "Shorten it."
        )
    max_length = arch.encoder.max_length if arch.encoder is not None and arch.encoder.positions == "learned" else 0
    batch = make_prompts(
        [row[:-1] for row in rows], 0, sources, engine.rows_multiple, max_length=max_length, first=first
    )
    targets_BL = np.zeros_like(batch.tokens_BP)
    for number, row in enumerate(rows):
        targets_BL[number, -len(row) + 1 :] = row[1:]
    return [np.asarray(x) for x in engine.program(_said, best)(batch, targets_BL)]


def _said(
    bound: BoundModel, best: int | None, batch: Prompts[jax.Array], targets_BL: jax.Array
) -> tuple[jax.Array, ...]:
    """Of each target, given its slot's token and those before it: log-probability, and whether none is likelier [B, L].

    With a number `best`, instead of the latter, the ids and log-probabilities of so many likeliest tokens [B, L, T].
    """
    x_BLD, _ = encode_prompts(bound, batch, batch.tokens_BP.shape[1])
    log_BLV = jax.nn.log_softmax(decode.predict(bound, x_BLD), axis=2)
    log_BL = jnp.take_along_axis(log_BLV, targets_BL[..., None], axis=2)[..., 0]
    if best is None:
        return log_BL, log_BLV.argmax(2) == targets_BL
    best_log_BLT, best_BLT = jax.lax.top_k(log_BLV, best)
    return log_BL, best_BLT, best_log_BLT


def windows(ids: Sequence[int], start: int, length: int) -> Iterator[tuple[list[int], list[int]]]:
    """(prompt, continuation) pairs that ask for each of the ids once, with at most `length` tokens read at a time.

    The first begins after the token `start`; the last reads as much of what was asked before as there is room for.
    """
    for first in range(0, len(ids), length):
        asked = list(ids[first : first + length])
        before = [start, *ids[:first]]
        yield before[len(asked) - 1 - length :] if first else [start], asked
