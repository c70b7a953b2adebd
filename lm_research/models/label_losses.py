"""Losses of labels as transformers' classes take them.

Legend: B batch, C classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

IGNORED = -100  # a label that is no label
# What the labels of a classification are, by `problem_type` of config.json.
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean negative log-likelihood [nats] of the labels [...] under logits [..., C], those of IGNORED left out."""
    counts = labels != IGNORED
    log_shares = jax.nn.log_softmax(logits.astype(jnp.float32))
    chosen = jnp.take_along_axis(log_shares, jnp.where(counts, labels, 0)[..., None], axis=-1)[..., 0]
    return -(chosen * counts).sum() / counts.sum()


def problem_of(problem_type: str | None, labels: jax.Array, classes: int) -> str:
    """What labels are: as config.json says, else as transformers finds it from the number of outputs and the labels' type.

    Integers [B, C] can only be several labels at once.
    """
    if problem_type is not None:
        return problem_type
    if classes == 1:
        return "regression"
    single = jnp.issubdtype(labels.dtype, jnp.integer) and labels.shape[1:] != (classes,)
    return "single_label_classification" if single else "multi_label_classification"


def classification_loss(logits_BC: jax.Array, labels: jax.Array, problem_type: str | None) -> jax.Array:
    """Mean squared error of values, cross-entropy of one label a row, or binary cross-entropy of several; means over all outputs."""
    problem = problem_of(problem_type, labels, logits_BC.shape[1])
    if problem == "single_label_classification":
        return cross_entropy(logits_BC, labels.reshape(-1))
    labels_BC = labels.reshape(logits_BC.shape)
    if problem == "regression":
        return jnp.square(logits_BC - labels_BC).mean()
    return (jax.nn.softplus(logits_BC) - logits_BC * labels_BC).mean()
