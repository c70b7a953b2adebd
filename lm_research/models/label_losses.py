"""Losses for labels in the form that transformers' classes take.

Legend: lm_research/models/__init__.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

IGNORED = -100  # the label of positions without a loss
# Values of `problem_type` in config.json, which defines the meaning of a classification's labels.
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean negative log-likelihood [nats] of the labels [...] under logits [..., C]; labels of IGNORED are not counted."""
    counted = labels != IGNORED
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    label_log_probs = jnp.take_along_axis(log_probs, jnp.where(counted, labels, 0)[..., None], axis=-1)[..., 0]
    return -(label_log_probs * counted).sum() / counted.sum()


def infer_problem_type(problem_type: str | None, labels: jax.Array, classes: int) -> str:
    """The problem type of config.json, or as transformers infers it from the number of outputs and the labels' type.

    Unlike in transformers, integer labels [B, C] are several labels per sequence.
    """
    if problem_type is not None:
        return problem_type
    if classes == 1:
        return "regression"
    single = jnp.issubdtype(labels.dtype, jnp.integer) and labels.shape[1:] != (classes,)
    return "single_label_classification" if single else "multi_label_classification"


def classification_loss(logits_BC: jax.Array, labels: jax.Array, problem_type: str | None) -> jax.Array:
    """Squared error of values, cross-entropy of single labels, or binary cross-entropy of several labels; means over all outputs."""
    problem = infer_problem_type(problem_type, labels, logits_BC.shape[1])
    if problem == "single_label_classification":
        return cross_entropy(logits_BC, labels.reshape(-1))
    labels_BC = labels.reshape(logits_BC.shape)
    if problem == "regression":
        return jnp.square(logits_BC - labels_BC).mean()
    return (jax.nn.softplus(logits_BC) - logits_BC * labels_BC).mean()
