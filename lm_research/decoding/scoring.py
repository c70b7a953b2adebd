"""Log-probabilities of given continuations.

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
    """Compute the log-probability [nats] of each token of each continuation; arguments as for `token_logprobs_of_rows`."""
    return [log_L for log_L, _ in token_logprobs_of_rows(engine, prompts, continuations, sources, first)]


def token_logprobs_of_rows(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    sources: Sequence[Sequence[int]] | None = None,
    first: Sequence[int] | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Compute log-probabilities [nats] of the tokens of each continuation, and whether each token is the most likely one.

    Args:
      engine: the model.
      prompts: token ids (the decoder's, for encoder-decoders).
      continuations: token ids, one row per prompt. The last token is predicted but not read, so it needs no position.
      sources: the encoder's tokens; None for decoders.
      first: position of each prompt's first token; None for 0.

    Raises:
      UserError: an empty row, or one that is longer than the model's positions.
    """
    prompts, continuations = as_rows("prompts", prompts), as_rows("continuations", continuations)
    rows = [[*prompt, *more] for prompt, more in zip(prompts, continuations, strict=True)]
    log_BL, best_BL = _score(engine, rows, sources, None, first)
    return [(log_BL[i, -len(more) :], best_BL[i, -len(more) :]) for i, more in enumerate(continuations)]


def score_prompt(engine: Engine, ids: Sequence[int], best: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score all tokens of a prompt but the first.

    Returns:
      log-probabilities [n - 1] in nats; ids and log-probabilities of the `best` most likely tokens at each position [n - 1, best].

    Raises:
      UserError: the prompt has fewer than two tokens, or more than the model's positions.
    """
    (row,) = as_rows("prompt", [ids])
    if len(row) < 2:
        raise UserError(
            "A prompt of one token has no token to score, as the first is not predicted. Give a longer one."
        )
    log_BL, best_BLT, best_log_BLT = _score(engine, [row], None, best)
    own = slice(1 - len(row), None)
    return log_BL[0, own], best_BLT[0, own], best_log_BLT[0, own]


def _score(
    engine: Engine, rows: Sequence[Sequence[int]], sources: Any, best: int | None, first: Any = None
) -> list[np.ndarray]:
    """Outputs of `_target_logprobs` for all tokens of rows but the first, aligned at the ends of the rows."""
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
    return [np.asarray(x) for x in engine.program(_target_logprobs, best)(batch, targets_BL)]


def _target_logprobs(
    bound: BoundModel, best: int | None, batch: Prompts[jax.Array], targets_BL: jax.Array
) -> tuple[jax.Array, ...]:
    """Compute each target's log-probability given the tokens up to its slot, and whether it is the most likely one; both [B, L].

    With `best`, return the ids and log-probabilities of that many most likely tokens [B, L, T] in place of the latter.
    """
    x_BLD, _ = encode_prompts(bound, batch, batch.tokens_BP.shape[1])
    log_BLV = jax.nn.log_softmax(decode.predict(bound, x_BLD), axis=2)
    log_BL = jnp.take_along_axis(log_BLV, targets_BL[..., None], axis=2)[..., 0]
    if best is None:
        return log_BL, log_BLV.argmax(2) == targets_BL
    best_log_BLT, best_BLT = jax.lax.top_k(log_BLV, best)
    return log_BL, best_BLT, best_log_BLT


def windows(ids: Sequence[int], start: int, length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Divide ids into (prompt, continuation) pairs that predict each id once and read at most `length` tokens.

    The first prompt is the token `start`; later prompts are as long as fits. Example: ids 1 2 3 4 5 with start 0 and length 3
    give ([0], [1, 2, 3]) and ([2, 3], [4, 5]); of each pair, all tokens but the last are read.
    """
    for first in range(0, len(ids), length):
        continuation = list(ids[first : first + length])
        before = [start, *ids[:first]]
        yield before[len(continuation) - 1 - length :] if first else [start], continuation
