"""Functions of the vectors of paired texts: the contrastive loss, and the ranks of right texts among all candidates.

Legend: B batch (records), C texts of a record, D width, K candidates, N records of a part.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.decoding.embed import similarities
from lm_research.metrics.ranks import first_ranks


def contrastive_loss(
    vectors_BCD: jax.Array, texts_BC: jax.Array, temperature: float, symmetric: bool
) -> tuple[jax.Array, jax.Array]:
    """Compute each record's loss [nats] and whether its right candidate has the largest product, both [B].

    The candidates for a record's first text are the second and further texts of all records. Excluded are empty candidates and
    duplicates of the right one: texts equal to the record's second text, and second texts of an equal first text.

    Args:
      vectors_BCD: the texts' vectors.
      texts_BC: text ids, equal for equal texts; -1 in empty rows.
      temperature: divides the products.
      symmetric: whether to average that loss with the loss of finding each first text, among all first texts, from its second.
    """
    rows, more = texts_BC.shape[0], texts_BC.shape[1] - 1
    candidates_KD = jnp.concatenate([vectors_BCD[:, 1 + c] for c in range(more)])
    texts_K = jnp.concatenate([texts_BC[:, 1 + c] for c in range(more)])
    first_B, second_B = texts_BC[:, 0], texts_BC[:, 1]
    target_BK = jnp.arange(rows)[:, None] == jnp.arange(rows * more)
    also_right_BK = (first_B[:, None] == first_B) | (second_B[:, None] == second_B)
    also_right_BK = jnp.concatenate([also_right_BK, second_B[:, None] == texts_K[rows:]], axis=1)
    logits_BK = vectors_BCD[:, 0] @ candidates_KD.T / temperature
    losses_B, right_B = _softmax_loss(logits_BK, target_BK, (also_right_BK | (texts_K < 0)) & ~target_BK)
    if symmetric:
        target_BB = target_BK[:, :rows]
        excluded_BB = (also_right_BK[:, :rows] | (first_B < 0)) & ~target_BB
        losses_B = (losses_B + _softmax_loss(logits_BK[:, :rows].T, target_BB, excluded_BB)[0]) / 2
    return losses_B, right_B


def _softmax_loss(logits_BK: jax.Array, target_BK: jax.Array, excluded_BK: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits_BK = jnp.where(excluded_BK, jnp.finfo(logits_BK.dtype).min, logits_BK)
    target_B = jnp.where(target_BK, logits_BK, 0.0).sum(1)
    return jax.nn.logsumexp(logits_BK, axis=1) - target_B, target_B >= logits_BK.max(1)


def ranks(vectors_NCD: np.ndarray, texts_NC: np.ndarray, similarity: str = "dot") -> np.ndarray:
    """Rank the right text of each record [N] among all distinct second and further texts, by a kind of similarity.

    A text is right if it is the second text of any record with the same first text.
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
