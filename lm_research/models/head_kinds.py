"""The kinds of prediction heads: their modules, and their outputs given a stack's final states.

Legend: lm_research/models/__init__.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp

from lm_research.models.label_losses import IGNORED, cross_entropy

if TYPE_CHECKING:
    from lm_research.models.heads import Model

Arrays = dict[str, Any]
Inputs = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class HeadKind:
    """One kind of head.

    Attributes:
      meaning: what the head predicts.
      outputs: (model, final states [B, L, D], inputs, mask [B, L], dropout key) -> outputs by name, with `loss` if there are labels.
      tokens: which tokens it predicts: "masked" those at each position, "next" the following ones; empty for none.
      pooler: whether it has a pooler; "optional" where files may leave it out.
      next_sentence: whether it classifies if two segments belong together.
      replaced: whether it classifies if each token was replaced.
      classifies: whether it has a classifier, of sequences or of tokens.
      labels: number of classes where the data does not decide it.
      named_labels: whether config.json names the classes.
      bare_classifier: whether the classifier has no bias in models whose pooler has no dense layer.
      stack: the only kind of architecture that can have it; empty for any.
      of_encoder: whether only the encoder of an encoder-decoder is used.
    """

    meaning: str
    outputs: Callable[[Model, jax.Array, Inputs, jax.Array, Any], Arrays]
    tokens: Literal["", "masked", "next"] = ""
    pooler: Literal["no", "yes", "optional"] = "no"
    next_sentence: bool = False
    replaced: bool = False
    classifies: bool = False
    labels: int = 0
    named_labels: bool = False
    bare_classifier: bool = False
    stack: Literal["", "encoder", "decoder", "encoder-decoder"] = ""
    of_encoder: bool = False


def _states(model: Model, x_BLD: jax.Array, inputs: Inputs, mask_BL: jax.Array, key: Any) -> Arrays:
    outputs = {"last_hidden_state": x_BLD}
    if model.pooler is not None:
        outputs["pooler_output"] = model.pooler(x_BLD, inputs["input_ids"], mask_BL)
    return outputs


def _tokens(model: Model, x_BLD: jax.Array, inputs: Inputs, mask_BL: jax.Array, key: Any) -> Arrays:
    logits_BLV, labels_BL = model.predict_tokens(x_BLD).logits(), inputs.get("labels")
    if labels_BL is None:
        return {"logits": logits_BLV}
    return {"logits": logits_BLV, "loss": cross_entropy(logits_BLV, labels_BL)}


def _next_token(model: Model, x_BLD: jax.Array, inputs: Inputs, mask_BL: jax.Array, key: Any) -> Arrays:
    logits_BLV, labels_BL = model.predict_tokens(x_BLD).logits(), inputs.get("labels")
    if labels_BL is None:
        return {"logits": logits_BLV}
    return {"logits": logits_BLV, "loss": cross_entropy(logits_BLV[:, :-1], labels_BL[:, 1:])}


def _pretraining(model: Model, x_BLD: jax.Array, inputs: Inputs, mask_BL: jax.Array, key: Any) -> Arrays:
    pair = inputs.get("next_sentence_label", inputs.get("sentence_order_label"))
    outputs = {
        "prediction_logits": model.predict_tokens(x_BLD).logits(),
        "seq_relationship_logits": model.predict_next_sentence(x_BLD),
    }
    if inputs.get("labels") is not None and pair is not None:
        outputs["loss"] = cross_entropy(outputs["prediction_logits"], inputs["labels"])
        outputs["loss"] += cross_entropy(outputs["seq_relationship_logits"], pair.reshape(-1))
    return outputs


def _next_sentence(model: Model, x_BLD: jax.Array, inputs: Inputs, mask_BL: jax.Array, key: Any) -> Arrays:
    logits_B2, labels = model.predict_next_sentence(x_BLD), inputs.get("labels", inputs.get("next_sentence_label"))
    return {"logits": logits_B2} | ({} if labels is None else {"loss": cross_entropy(logits_B2, labels.reshape(-1))})


def _replaced(model: Model, x_BLD: jax.Array, inputs: Inputs, mask_BL: jax.Array, key: Any) -> Arrays:
    logits_BL, labels_BL = model.replaced_token(x_BLD), inputs.get("labels")
    if labels_BL is None:
        return {"logits": logits_BL}
    losses_BL = jax.nn.softplus(logits_BL) - logits_BL * labels_BL
    return {"logits": logits_BL, "loss": (losses_BL * mask_BL).sum() / mask_BL.sum()}


def _classes(model: Model, x_BLD: jax.Array, inputs: Inputs, mask_BL: jax.Array, key: Any) -> Arrays:
    # Of the source's tokens, where the decoder reads them.
    if model.arch.encoder is not None and model.arch.pooling == "last":
        tokens_BL, length = inputs["input_ids"], x_BLD.shape[1]
        padding = (0, 0), (1, max(0, length - tokens_BL.shape[1] - 1))
        shifted_BL = jnp.pad(tokens_BL, padding, constant_values=model.arch.pad_id)[:, :length]
        return {"logits": model.classify(x_BLD, shifted_BL, dropout_key=key)}
    to_end = model.pooler is not None and model.pooler.pooling == "end"  # whatever is masked, as in transformers
    return {"logits": model.classify(x_BLD, inputs["input_ids"], None if to_end else mask_BL, key)}


def _token_classes(model: Model, x_BLD: jax.Array, inputs: Inputs, mask_BL: jax.Array, key: Any) -> Arrays:
    logits_BLC, labels_BL = model.classify(x_BLD, dropout_key=key), inputs.get("labels")
    return {"logits": logits_BLC} | ({} if labels_BL is None else {"loss": cross_entropy(logits_BLC, labels_BL)})


def _span(model: Model, x_BLD: jax.Array, inputs: Inputs, mask_BL: jax.Array, key: Any) -> Arrays:
    logits_BL2 = model.classify(x_BLD, inputs["input_ids"], dropout_key=key)
    ends = {"start": logits_BL2[..., 0], "end": logits_BL2[..., 1]}
    outputs: Arrays = {f"{name}_logits": logits_BL for name, logits_BL in ends.items()}
    if inputs.get("start_positions") is not None and inputs.get("end_positions") is not None:
        # A position outside of the sequence is an answer that was cut off: it has no loss.
        length = x_BLD.shape[1]
        labels = {name: inputs[f"{name}_positions"].reshape(-1) for name in ends}
        labels = {name: jnp.where((at >= 0) & (at < length), at, IGNORED) for name, at in labels.items()}
        outputs["loss"] = sum(cross_entropy(logits_BL, labels[name]) for name, logits_BL in ends.items()) / 2
    return outputs


HEADS = {
    "none": HeadKind("final states, and the pooled state where the family has a pooler", _states, pooler="optional"),
    "masked_lm": HeadKind("the token at each position", _tokens, tokens="masked", stack="encoder", of_encoder=True),
    "pretraining": HeadKind(
        "masked tokens, and whether two segments belong together",
        _pretraining,
        tokens="masked",
        pooler="yes",
        next_sentence=True,
        stack="encoder",
    ),
    "next_sentence": HeadKind(
        "whether two segments belong together", _next_sentence, pooler="yes", next_sentence=True, stack="encoder"
    ),
    "replaced_token": HeadKind("whether each token was replaced", _replaced, replaced=True, stack="encoder"),
    "causal_lm": HeadKind("the next token", _next_token, tokens="next", stack="decoder"),
    "seq2seq_lm": HeadKind("the next token of the target", _tokens, tokens="next", stack="encoder-decoder"),
    "classification": HeadKind(
        "classes of a sequence, or values",
        _classes,
        pooler="yes",
        classifies=True,
        named_labels=True,
        bare_classifier=True,
    ),
    "token_classification": HeadKind(
        "a class of each token", _token_classes, classifies=True, named_labels=True, of_encoder=True
    ),
    "span": HeadKind("where an answer starts and ends", _span, classifies=True, labels=2),
    "multiple_choice": HeadKind(
        "which of several sequences", _classes, pooler="yes", classifies=True, labels=1, stack="encoder"
    ),
}
