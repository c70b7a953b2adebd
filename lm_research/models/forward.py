"""A whole model as a function from a dict of arrays to a dict of arrays, with the names users know them by.

The names are those of the Hugging Face classes: `input_ids`, `attention_mask`, `logits`, `last_hidden_state`, ... An
attention mask hides padding from every position; it does not restart positions, so rows may be padded on either side
wherever the family's positions allow it.

Legend: B batch, L length, S source length, D width, V vocabulary, C classes, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm_research.models.architecture import Architecture
from lm_research.models.head_kinds import HEADS, Arrays
from lm_research.models.heads import Model
from lm_research.models.label_losses import IGNORED, classification_loss, cross_entropy
from lm_research.models.transformer import StackOutputs

INPUTS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "decoder_input_ids",
    "decoder_attention_mask",
    "labels",
    "next_sentence_label",
    "sentence_order_label",
    "start_positions",
    "end_positions",
)


def forward(
    model: Model,
    head: str,
    inputs: Mapping[str, jax.Array],
    capture: bool = False,
    key: Any = None,
    problem_type: str | None = None,
) -> Arrays:
    """Runs a model.

    Args:
      model: bound to its parameters.
      head: its head's name.
      inputs: arrays [B, L] by the names of INPUTS (multiple choice: [B, choices, L]).
      capture: also return `hidden_states` and `attentions` (and those of the decoder and across).
      key: a jax.random key for dropout; None applies none.
      problem_type: one of PROBLEM_TYPES, which decides the loss of head "classification"; None goes by the labels.

    Returns:
      `last_hidden_state` [B, L, D] of models without a head (with `pooler_output` [B, D] where they have one);
      `logits` (or `prediction_logits` and `seq_relationship_logits` of the pre-training pair, `start_logits` and
      `end_logits` of spans) in float32; `loss`, if there are labels; `encoder_last_hidden_state` of encoder-decoders.
    """
    if head == "multiple_choice":
        return _multiple_choice(model, inputs, capture, key)
    tokens_BL = inputs["input_ids"]
    mask_BL = inputs.get("attention_mask")
    mask_BL = jnp.ones_like(tokens_BL) if mask_BL is None else mask_BL
    captured: list[StackOutputs] | None = [] if capture else None
    options: dict[str, Any] = dict(query_segments_BL=jnp.ones_like(tokens_BL), captured=captured)
    given: dict[str, Any] = dict(
        positions_BL=_positions(model.reader.arch, inputs), types_BL=inputs.get("token_type_ids")
    )
    keys = (None, None, None) if key is None else jax.random.split(key, 3)
    outputs: Arrays = {}
    if model.arch.kind == "encoder-decoder":
        source_BSD, memory = model.encode(tokens_BL, mask_BL, dropout_key=keys[0], **given, **options)
        targets_BL = inputs["decoder_input_ids"]
        target_mask_BL = inputs.get("decoder_attention_mask")
        target_mask_BL = jnp.ones_like(targets_BL) if target_mask_BL is None else target_mask_BL
        options["query_segments_BL"] = jnp.ones_like(targets_BL)
        x_BLD = model.decoder(targets_BL, target_mask_BL, dropout_key=keys[1], memory=memory, **options)
        outputs["encoder_last_hidden_state"] = source_BSD
    else:
        x_BLD = model.reader(tokens_BL, mask_BL, dropout_key=keys[0], **given, **options)
    outputs = HEADS[head].outputs(model, x_BLD, inputs, mask_BL, keys[2]) | outputs
    if head == "classification" and inputs.get("labels") is not None:
        outputs["loss"] = classification_loss(outputs["logits"], inputs["labels"], problem_type)
    return outputs if captured is None else outputs | _captured(model, captured)


def _positions(arch: Architecture, inputs: Mapping[str, jax.Array]) -> jax.Array | None:
    """Positions [B, L] of `position_ids`, which are rows of the table."""
    rows_BL = inputs.get("position_ids")
    return rows_BL if rows_BL is None or arch.positions != "learned" else rows_BL - arch.position_offset


def final_states(model: Model, inputs: Mapping[str, jax.Array]) -> jax.Array:
    """States of the stack that reads `input_ids` (of an encoder-decoder the encoder), [B, L, D]."""
    tokens_BL, mask_BL = inputs["input_ids"], inputs["attention_mask"]
    return model.reader(
        tokens_BL, mask_BL, types_BL=inputs.get("token_type_ids"), query_segments_BL=jnp.ones_like(tokens_BL)
    )


def mean_pool(x_BLD: jax.Array, mask_BL: jax.Array) -> jax.Array:
    """Mean over the positions whose mask is 1, [B, D] in float32; of other masks, weighted by them."""
    weights_BL1 = mask_BL[..., None].astype(jnp.float32)
    return (x_BLD.astype(jnp.float32) * weights_BL1).sum(1) / weights_BL1.sum(1).clip(1.0)


# How the states of a text become one vector.
POOLINGS = ("mean", "cls", "last", "max", "mean_sqrt_len", "weightedmean")


def pool(x_BLD: jax.Array, mask_BL: jax.Array, pooling: str, skipped: int | jax.Array = 0) -> jax.Array:
    """One vector a row, [B, D] in float32, of the states at real positions, padding being on either side.

    Args:
      pooling: their "mean"; their sum by the root of their number ("mean_sqrt_len"); their mean where the n-th counts n times
        ("weightedmean"); the largest of each number ("max"); the first ("cls") or the last. Vectors of several with + between them
        are joined, [B, D of all].
      skipped: real positions at the beginning of each row that are left out.
    """
    x_BLD = x_BLD.astype(jnp.float32)
    place_BL = (mask_BL > 0).astype(jnp.int32).cumsum(1)  # from 1, of real positions
    real_BL = (mask_BL > 0) & (place_BL > skipped)
    return jnp.concatenate([_pooled(x_BLD, real_BL, place_BL, one) for one in pooling.split("+")], axis=-1)


def _pooled(x_BLD: jax.Array, real_BL: jax.Array, place_BL: jax.Array, pooling: str) -> jax.Array:
    if pooling == "mean":
        return mean_pool(x_BLD, real_BL)
    if pooling == "mean_sqrt_len":
        return mean_pool(x_BLD, real_BL) * jnp.sqrt(real_BL.sum(1, keepdims=True))
    if pooling == "weightedmean":
        return mean_pool(x_BLD, real_BL * place_BL)
    if pooling == "max":
        return jnp.where(real_BL[..., None], x_BLD, -jnp.inf).max(1)
    at_B = real_BL.argmax(1) if pooling == "cls" else (real_BL * jnp.arange(real_BL.shape[1])).argmax(1)
    return jnp.take_along_axis(x_BLD, at_B[:, None, None], axis=1)[:, 0]


def l2_normalize(x_BD: jax.Array) -> jax.Array:
    """Vectors divided by their length; what is as good as 0 stays so, and so does its gradient."""
    return x_BD * jax.lax.rsqrt(jnp.square(x_BD).sum(-1, keepdims=True).clip(1e-24))


def _captured(model: Model, captured: list[StackOutputs]) -> Arrays:
    if len(captured) == 1:
        return {"hidden_states": captured[0].hidden_states, "attentions": captured[0].attentions}
    encoder, decoder = captured
    return {
        "encoder_hidden_states": encoder.hidden_states,
        "encoder_attentions": encoder.attentions,
        "decoder_hidden_states": decoder.hidden_states,
        "decoder_attentions": decoder.attentions,
        "cross_attentions": decoder.cross_attentions,
    }


def _multiple_choice(model: Model, inputs: Mapping[str, Any], capture: bool, key: Any) -> Arrays:
    batch, choices = inputs["input_ids"].shape[:2]
    rows = {name: x.reshape(batch * choices, -1) for name, x in inputs.items() if name != "labels"}
    outputs = forward(model, "classification", rows, capture, key)
    outputs["logits"] = outputs["logits"].reshape(batch, choices)
    if inputs.get("labels") is not None:
        outputs["loss"] = cross_entropy(outputs["logits"], inputs["labels"].reshape(-1))
    return outputs


def shift_right(labels_BL: jax.Array, start_id: int, pad_id: int) -> jax.Array:
    """Decoder inputs for labels: all moved one to the right, `start_id` in front, IGNORED as padding."""
    shifted = jnp.concatenate([jnp.full_like(labels_BL[:, :1], start_id), labels_BL[:, :-1]], axis=1)
    return jnp.where(shifted == IGNORED, pad_id, shifted)


def shift_around(labels_BL: jax.Array, pad_id: int) -> jax.Array:
    """The same with each row's last real token in front: mBART's language code."""
    real_BL = jnp.where(labels_BL == IGNORED, pad_id, labels_BL)
    last_B1 = (real_BL != pad_id).sum(1, keepdims=True) - 1
    start_B1 = jnp.take_along_axis(real_BL, last_B1, axis=1)
    return jnp.concatenate([start_B1, real_BL[:, :-1]], axis=1)
