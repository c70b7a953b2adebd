"""What is made of the vectors of paired texts: the contrastive loss, and the ranks of right texts among all.

Legend: B batch (records), C texts of a record, D width, K candidates, N records of a part.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.decoding.embed import similarities
from lm_research.metrics.ranks import first_ranks


def contrast(
    vectors_BCD: jax.Array, texts_BC: jax.Array, temperature: float, symmetric: bool
) -> tuple[jax.Array, jax.Array]:
    """Loss [nats] and whether the right candidate is the nearest, of each record [B].

    The candidates of a record's first text are the second and further texts of all records. Left out are empty ones, and
    those that are right too: equal to its second text, or second text of an equal first one.

    Args:
      vectors_BCD: the texts' vectors.
      texts_BC: numbers that are equal where texts are; -1 of empty rows.
      temperature: what products are divided by.
      symmetric: whether the loss is the mean of that and of finding each first text, among all first ones, by its second.
    """
    rows, more = texts_BC.shape[0], texts_BC.shape[1] - 1
    candidates_KD = jnp.concatenate([vectors_BCD[:, 1 + c] for c in range(more)])
    texts_K = jnp.concatenate([texts_BC[:, 1 + c] for c in range(more)])
    first_B, second_B = texts_BC[:, 0], texts_BC[:, 1]
    own_BK = jnp.arange(rows)[:, None] == jnp.arange(rows * more)
    alike_BK = (first_B[:, None] == first_B) | (second_B[:, None] == second_B)
    alike_BK = jnp.concatenate([alike_BK, second_B[:, None] == texts_K[rows:]], axis=1)
    logits_BK = vectors_BCD[:, 0] @ candidates_KD.T / temperature
    losses_B, right_B = _softmax_loss(logits_BK, own_BK, (alike_BK | (texts_K < 0)) & ~own_BK)
    if symmetric:
        own_BB = own_BK[:, :rows]
        hidden_BB = (alike_BK[:, :rows] | (first_B < 0)) & ~own_BB
        losses_B = (losses_B + _softmax_loss(logits_BK[:, :rows].T, own_BB, hidden_BB)[0]) / 2
    return losses_B, right_B


def _softmax_loss(logits_BK: jax.Array, own_BK: jax.Array, hidden_BK: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits_BK = jnp.where(hidden_BK, jnp.finfo(logits_BK.dtype).min, logits_BK)
    own_B = jnp.where(own_BK, logits_BK, 0.0).sum(1)
    return jax.nn.logsumexp(logits_BK, axis=1) - own_B, own_B >= logits_BK.max(1)


def ranks(vectors_NCD: np.ndarray, texts_NC: np.ndarray, similarity: str = "dot") -> np.ndarray:
    """Rank [N] of the right text of each record among all different second and further texts, by a kind of similarity.

    Right is each text that is the second one of a record with the same first one.
    """
    candidates, at = np.unique(texts_NC[:, 1:], return_index=True)
    candidates_KD = vectors_NCD[:, 1:].reshape(-1, vectors_NCD.shape[-1])[at]
    place_N = np.searchsorted(candidates, texts_NC[:, 1])
    right: dict[int, set[int]] = {}
    for first, place in zip(texts_NC[:, 0].tolist(), place_N.tolist(), strict=True):
        right.setdefault(first, set()).add(place)
    right_N = [np.array(sorted(right[first])) for first in texts_NC[:, 0].tolist()]
    compare = functools.partial(similarities, kind=similarity)
    return first_ranks(vectors_NCD[:, 0], candidates_KD, right_N, compare=compare)
