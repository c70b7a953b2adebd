"""A whole model as a function from a dict of arrays to a dict of arrays, with the names of transformers' classes.

These are `input_ids`, `attention_mask`, `logits`, `last_hidden_state`, and so on. An attention mask hides padding from every position, but
does not restart positions, so sequences may be padded on either side if the family's positions allow it. Its values above 1 are the numbers
of packed sequences, which do not attend to each other.

Legend: lm_research/models/__init__.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm_research.models.architecture import Architecture
from lm_research.models.head_kinds import HEADS, Arrays
from lm_research.models.heads import Model, question_mask
from lm_research.models.label_losses import IGNORED, classification_loss, cross_entropy
from lm_research.models.load_balancing import balance_loss, router_loads
from lm_research.models.transformer import StackOutputs

INPUTS = (
    "input_ids",
    "attention_mask",
    "global_attention_mask",
    "token_type_ids",
    "task_type_ids",
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
    """Run a model.

    Args:
      model: the model, bound to its parameters.
      head: the name of its head.
      inputs: arrays [B, L] by the names of INPUTS (multiple choice: [B, choices, L]), and `memory_mask`, the attention mask of a decoder's
        attention to the encoder where it is another.
      capture: whether to return `hidden_states` and `attentions` too (of encoder-decoders, those of both stacks and `cross_attentions`).
      key: PRNG key for dropout; None disables it.
      problem_type: one of PROBLEM_TYPES, which selects the loss of the head "classification"; None infers it from the labels.

    Returns:
      `last_hidden_state` [B, L, D] without a head, and `pooler_output` [B, D] if there is a pooler; with a head, `logits` in float32
      (`prediction_logits` and `seq_relationship_logits` for the head "pretraining", `start_logits` and `end_logits` for "span"); `loss`
      if there are labels; and `encoder_last_hidden_state` of encoder-decoders.
    """
    if head == "multiple_choice":
        return _multiple_choice(model, inputs, capture, key)
    tokens_BL = inputs["input_ids"]
    mask_BL = inputs.get("attention_mask")
    mask_BL = jnp.ones_like(tokens_BL) if mask_BL is None else mask_BL
    captured: list[StackOutputs] | None = [] if capture else None
    options: dict[str, Any] = dict(query_segments_BL=jnp.maximum(mask_BL, 1), captured=captured)
    source: dict[str, Any] = dict(
        positions_BL=_positions(model.reader.arch, inputs),
        prefix_BL=inputs.get("global_attention_mask"),
        **_types(inputs),
    )
    if model.masks_questions and source["types_BL"] is None and model.arch.num_types > 1:
        source["types_BL"] = 1 - question_mask(tokens_BL, model.arch.sep_id).astype(jnp.int32)
    keys = (None, None, None) if key is None else jax.random.split(key, 3)
    outputs: Arrays = {}
    if model.arch.kind == "encoder-decoder":
        source_BSD, memory = model.encode(tokens_BL, mask_BL, dropout_key=keys[0], **source, **options)
        memory = memory._replace(segments_BS=inputs.get("memory_mask", memory.segments_BS))
        targets_BL = inputs["decoder_input_ids"]
        target_mask_BL = inputs.get("decoder_attention_mask")
        target_mask_BL = jnp.ones_like(targets_BL) if target_mask_BL is None else target_mask_BL
        options["query_segments_BL"] = jnp.ones_like(targets_BL)
        x_BLD = model.decoder(targets_BL, target_mask_BL, dropout_key=keys[1], memory=memory, **options)
        outputs["encoder_last_hidden_state"] = source_BSD
    else:
        x_BLD = model.reader(tokens_BL, mask_BL, dropout_key=keys[0], **source, **options)
    outputs = HEADS[head].outputs(model, x_BLD, inputs, mask_BL, keys[2]) | outputs
    if head == "classification" and inputs.get("labels") is not None:
        outputs["loss"] = classification_loss(outputs["logits"], inputs["labels"], problem_type)
    return outputs if captured is None else outputs | _captured(model, captured)


def balanced_forward(model: Model, head: str, inputs: Mapping[str, jax.Array], capture: bool = False) -> Arrays:
    """Run a decoder with experts as `forward` does, with their load-balancing loss as `aux_loss` and, weighted, in `loss`."""
    with router_loads() as loads:
        outputs = forward(model, head, inputs, capture)
    outputs["aux_loss"] = balance_loss(loads)
    weighted = {"loss": outputs["loss"] + model.arch.balance_weight * outputs["aux_loss"]} if "loss" in outputs else {}
    return outputs | weighted


def _positions(arch: Architecture, inputs: Mapping[str, jax.Array]) -> jax.Array | None:
    """Positions [B, L]; `position_ids` are rows of a learned table, unless positions are counted by the attention mask (OPT).

    They have no effect on biases by distance.
    """
    if arch.positions == "none" and all(spec.positions != "rotary" for spec in arch.layers):
        return None
    rows_BL = inputs.get("position_ids")
    counted = arch.positions != "learned" or not arch.count_masked
    return rows_BL if rows_BL is None or counted else rows_BL - arch.position_offset


def _types(inputs: Mapping[str, jax.Array]) -> dict[str, Any]:
    return {"types_BL": inputs.get("token_type_ids"), "task_types_BL": inputs.get("task_type_ids")}


def final_states(model: Model, inputs: Mapping[str, jax.Array]) -> jax.Array:
    """Final states [B, L, D] of the stack that reads `input_ids`; in an encoder-decoder this is the encoder."""
    tokens_BL, mask_BL = inputs["input_ids"], inputs["attention_mask"]
    return model.reader(tokens_BL, mask_BL, query_segments_BL=jnp.ones_like(tokens_BL), **_types(inputs))


def mean_pool(x_BLD: jax.Array, mask_BL: jax.Array) -> jax.Array:
    """Mean over positions weighted by the mask, [B, D] in float32."""
    weights_BL1 = mask_BL[..., None].astype(jnp.float32)
    return (x_BLD.astype(jnp.float32) * weights_BL1).sum(1) / weights_BL1.sum(1).clip(1.0)


# The methods of `pool`.
POOLINGS = ("mean", "cls", "last", "max", "mean_sqrt_len", "weightedmean")


def pool(x_BLD: jax.Array, mask_BL: jax.Array, pooling: str, skipped: int | jax.Array = 0) -> jax.Array:
    """Pool the states of each sequence, [B, D] in float32.

    Args:
      x_BLD: final states.
      mask_BL: above 0 for real positions; padding may be on either side.
      pooling: "mean"; "mean_sqrt_len", the sum over the root of the length; "weightedmean", the mean in which the n-th position has
        weight n; "max" of each element; "cls", the first position; or "last". Several joined by + are concatenated.
      skipped: number of real positions at the start of each sequence to leave out.
    """
    x_BLD = x_BLD.astype(jnp.float32)
    ordinal_BL = (mask_BL > 0).astype(jnp.int32).cumsum(1)  # of real positions, from 1
    real_BL = (mask_BL > 0) & (ordinal_BL > skipped)
    return jnp.concatenate([_pool_one(x_BLD, real_BL, ordinal_BL, one) for one in pooling.split("+")], axis=-1)


def _pool_one(x_BLD: jax.Array, real_BL: jax.Array, ordinal_BL: jax.Array, pooling: str) -> jax.Array:
    if pooling == "mean":
        return mean_pool(x_BLD, real_BL)
    if pooling == "mean_sqrt_len":
        return mean_pool(x_BLD, real_BL) * jnp.sqrt(real_BL.sum(1, keepdims=True))
    if pooling == "weightedmean":
        return mean_pool(x_BLD, real_BL * ordinal_BL)
    if pooling == "max":
        return jnp.where(real_BL[..., None], x_BLD, -jnp.inf).max(1)
    index_B = real_BL.argmax(1) if pooling == "cls" else (real_BL * jnp.arange(real_BL.shape[1])).argmax(1)
    return jnp.take_along_axis(x_BLD, index_B[:, None, None], axis=1)[:, 0]


def l2_normalize(x_BD: jax.Array) -> jax.Array:
    """Divide vectors by their L2 norm; vectors close to 0 stay close to 0, and their gradients finite."""
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
    """Decoder inputs for labels: shifted one to the right after `start_id`, with IGNORED replaced by padding."""
    shifted = jnp.concatenate([jnp.full_like(labels_BL[:, :1], start_id), labels_BL[:, :-1]], axis=1)
    return jnp.where(shifted == IGNORED, pad_id, shifted)


def shift_around(labels_BL: jax.Array, pad_id: int) -> jax.Array:
    """Decoder inputs for labels that start with each sequence's last real token, mBART's language code."""
    real_BL = jnp.where(labels_BL == IGNORED, pad_id, labels_BL)
    last_B1 = (real_BL != pad_id).sum(1, keepdims=True) - 1
    start_B1 = jnp.take_along_axis(real_BL, last_B1, axis=1)
    return jnp.concatenate([start_B1, real_BL[:, :-1]], axis=1)
