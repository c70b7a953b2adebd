"""Evaluation on held-out documents: every example once, with sums added exactly and divided once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lm_research.objectives.base import Outputs, Trainable
from lm_research.parallel.batches import to_global


def evaluate(
    eval_step: Callable[[Any, dict[str, jax.Array]], tuple[dict[str, jax.Array], dict[str, jax.Array]]],
    params: Any,
    batches: Iterator[dict[str, np.ndarray]],
    trainable: Trainable[Any],
    mesh: Mesh,
    outputs: list[Outputs] | None = None,
) -> dict[str, float]:
    """Average over all batches: `eval_loss_nats`, the objective's metrics, and perplexity and bits per byte or a task's scores.

    `outputs`, if given, is filled with the task's outputs of each batch.

    Returns:
      eval_loss_nats: sum of the loss terms; eval_perplexity: exp of the token term; eval_bits_per_byte: nats of all
      predicted tokens / ln 2 / their UTF-8 bytes; eval_tokens: predicted tokens.
    """
    objective, sums = trainable.objective, dict[str, float]()
    kept = [] if outputs is None else outputs
    pending: list[tuple[dict[str, jax.Array], dict[str, jax.Array]]] = []
    for batch in batches:
        pending.append(eval_step(params, to_global(mesh, batch)))
    for values, output in jax.device_get(pending):
        kept.append(output)
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(value)  # float64, in the batches' order
    means = {name: sums[name] / max(1.0, sums[f"total_{total}"]) for name, total in objective.metrics.items()}
    result = {
        "eval_loss_nats": sum(means[term] for term in objective.loss_terms),
        **{f"eval_{name}": value for name, value in means.items()},
    }
    if any(kept):
        result |= {f"eval_{name}": value for name, value in trainable.scores(kept).items()}
    if objective.token_loss_name is None:
        return result
    token_nats = means[objective.token_loss_name]
    return result | {
        "eval_perplexity": math.exp(token_nats) if token_nats < 700 else math.inf,
        "eval_bits_per_byte": sums[objective.token_loss_name] / math.log(2) / max(1.0, sums["total_bytes"]),
        "eval_tokens": int(sums["total_tokens"]),
    }


def count_targets(batches: Iterable[dict[str, np.ndarray]], vocab_size: int) -> np.ndarray:
    """Count how often each id is predicted in batches, int64 [V]."""
    counts_V = np.zeros(vocab_size, np.int64)
    for batch in batches:
        for name, targets in batch.items():
            if name.startswith("targets_"):
                counted = batch["weights_" + name.removeprefix("targets_")] > 0
                counts_V += np.bincount(targets[counted], minlength=vocab_size)
    return counts_V


def training_frequencies(text_V: np.ndarray, sample_V: np.ndarray, special_ids: np.ndarray) -> np.ndarray:
    """Estimate how often each id is predicted in one pass over the training text, float64 [V].

    Tokens of text count as often as they occur. Others (sentinels, ends of texts) only occur in `sample_V`, whose counts are scaled from
    the sampled rows to the whole text. For example, if the sample has 10 tokens of text and 2 sentinels, and the text has 1,000 tokens,
    the sentinels count as 200.

    Args:
      text_V: how often each id occurs in the text.
      sample_V: how often each id is predicted in some training rows.
      special_ids: tokens that do not represent text.
    """
    is_text_V = text_V > 0
    is_text_V[special_ids] = False
    scale = text_V[is_text_V].sum() / max(1, sample_V[is_text_V].sum())
    return np.where(is_text_V, text_V, sample_V * scale)


def unigram_loss(frequencies_V: np.ndarray, targets_V: np.ndarray) -> float:
    """Compute the cross-entropy [nats] of unigram frequencies on an evaluation's targets, given as a count per id.

    A model that uses the context must be below this baseline. One is added to each frequency (Laplace smoothing), so that tokens that
    training never predicts have a probability above zero.
    """
    frequencies_V = frequencies_V + 1.0
    surprise_V = -np.log(frequencies_V / frequencies_V.sum())
    return float(targets_V @ surprise_V) / max(1, int(targets_V.sum()))
