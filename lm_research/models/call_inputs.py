"""Inputs of a call of a model, named as in transformers: checked, and completed by those that follow from others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.errors import UserError
from lm_research.models import label_losses
from lm_research.models.attention.mask import packed_segments
from lm_research.models.definition import ModelDefinition
from lm_research.models.families.base import Family
from lm_research.models.forward import INPUTS, shift_around, shift_right
from lm_research.models.head_kinds import HEADS


@dataclasses.dataclass(frozen=True)
class InputChecks:
    """Checks and completes the inputs of one model.

    Attributes:
      definition: the architecture and the head.
      family: of the model.
      config: config.json.
      decoder_config: the same with the keys of an inner decoder's config.
    """

    definition: ModelDefinition
    family: Family
    config: Mapping[str, Any]
    decoder_config: Mapping[str, Any]

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs as int32 arrays (labels may be float32), with those that were left out and follow from others.

        Raises:
          UserError: an input is unknown, missing, of the wrong shape, too long, or has ids outside the vocabulary.
        """
        inputs = {name: value for name, value in inputs.items() if value is not None}
        unknown = sorted(set(inputs) - set(INPUTS))
        if unknown:
            raise UserError(f"The model has no input {', '.join(unknown)}. Its inputs are {', '.join(INPUTS)}.")
        if "input_ids" not in inputs:
            raise UserError("The model needs input_ids, an array [B, L] of token ids.")
        arrays = {name: _array(name, value) for name, value in inputs.items()}
        arch = self.definition.arch
        rank = 3 if self.definition.head.name == "multiple_choice" else 2
        for name in ("input_ids", "decoder_input_ids"):
            if name in arrays and arrays[name].ndim != rank:
                raise UserError(
                    f"{name} has shape {arrays[name].shape}; this model takes {rank} dimensions (batch first)."
                )
        if arch.kind == "encoder-decoder" and "decoder_input_ids" not in arrays:
            arrays["decoder_input_ids"] = self.decoder_inputs(arrays)
            if "decoder_attention_mask" not in arrays and self.family.hides_padded_targets:
                real = arrays["decoder_input_ids"] != self._pad_id
                arrays["decoder_attention_mask"] = real.astype(np.int32)
        if self.family.hides_padding:
            self._hide_padding(arrays)
        if "position_ids" in arrays and "attention_mask" not in arrays and self._packs_positions:
            positions = jnp.broadcast_to(arrays["position_ids"], arrays["input_ids"].shape)
            arrays["attention_mask"] = packed_segments(positions)
        if arch.kind != "encoder-decoder" and ("decoder_input_ids" in arrays or "decoder_attention_mask" in arrays):
            raise UserError(
                f"This model is a plain {arch.kind}: it has no decoder_input_ids and decoder_attention_mask."
            )
        pairs = [("input_ids", arch.encoder or arch), ("decoder_input_ids", arch)]
        for name, stack in pairs:
            if name in arrays:
                self._check_ids(name, arrays[name], stack, arrays)
        if "global_attention_mask" in arrays and not (arch.encoder or arch).has_global_tokens:
            raise UserError("This model has no global attention: leave out global_attention_mask.")
        same = {
            "attention_mask": "input_ids",
            "global_attention_mask": "input_ids",
            "token_type_ids": "input_ids",
            "task_type_ids": "input_ids",
            "decoder_attention_mask": "decoder_input_ids",
        }
        for name, other in same.items():
            if name in arrays and arrays[name].shape != arrays[other].shape:
                raise UserError(f"{name} has shape {arrays[name].shape}, but {other} has {arrays[other].shape}.")
        input_stack = arch.encoder or arch
        types = input_stack.vocab_size if input_stack.token_types else input_stack.num_types
        for name, size in (("token_type_ids", types), ("task_type_ids", input_stack.num_task_types)):
            if size and name in arrays:
                _check_range(name, arrays[name], size)
        if self.definition.head.name == "classification" and "labels" in arrays:
            self._check_labels(arrays["labels"], len(arrays["input_ids"]))
        return arrays

    @property
    def _packs_positions(self) -> bool:
        packs = self.family.packed_positions
        uncached = packs == "uncached" and self.config.get("use_cache") is False
        return self.definition.arch.kind == "decoder" and (packs == "always" or uncached)

    def _hide_padding(self, arrays: dict[str, Any]) -> None:
        """Make masks of the padding tokens where none are given; the decoder attends to all of the source then."""
        arch = self.definition.arch
        stacks = {"attention_mask": ("input_ids", arch.encoder or arch)}
        if HEADS[self.definition.head.name].classifies:
            stacks["decoder_attention_mask"] = ("decoder_input_ids", arch)
        if "attention_mask" not in arrays:
            arrays["memory_mask"] = np.ones(arrays["input_ids"].shape, np.int32)
        for mask, (tokens, stack) in stacks.items():
            if mask not in arrays:
                arrays[mask] = (arrays[tokens] != stack.pad_id).astype(np.int32)

    def _check_labels(self, labels: Any, rows: int) -> None:
        """Raise a UserError if the loss of the classification head does not accept these labels."""
        classes = self.definition.head.num_labels
        problem = label_losses.infer_problem_type(self.config.get("problem_type"), labels, classes)
        single = problem == "single_label_classification"
        if np.shape(labels)[:1] != (rows,) or labels.size != rows * (1 if single else classes):
            raise UserError(
                f"labels have shape {labels.shape}; {problem} with {classes} outputs takes {'one number' if single else classes} for each of "
                f"{rows} rows. problem_type in config.json sets the kind of labels; without it, integers are classes and floats are multi-label."
            )
        if single and not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"labels have type {labels.dtype}; {problem} takes integers, the indices of the classes.")
        if single:
            _check_range("labels", jnp.where(labels == label_losses.IGNORED, 0, labels), classes)

    def _check_ids(self, name: str, ids: Any, stack: Any, arrays: Mapping[str, Any]) -> None:
        _check_range(name, ids, stack.vocab_size)
        if stack.positions == "learned" and "position_ids" not in arrays and ids.shape[-1] > stack.max_length:
            raise UserError(
                f"{name} has rows of {ids.shape[-1]} tokens, but the model has positions for {stack.max_length}. Shorten them, "
                "for example with tokenizer(..., truncation=True)."
            )

    @property
    def _pad_id(self) -> int:
        """The padding token of decoder inputs."""
        pad = self.config.get("pad_token_id")
        return max(self.definition.arch.pad_id if pad is None else pad, 0)

    def decoder_inputs(self, arrays: Mapping[str, Any]) -> Any:
        """Make `decoder_input_ids` by shifting the labels, or input_ids for heads that need no labels."""
        pad, start = self._pad_id, self.decoder_config.get("decoder_start_token_id")
        start = self.decoder_config.get(self.family.start_token) if start is None else start
        source = arrays.get("labels") if self.definition.head.name == "seq2seq_lm" else arrays["input_ids"]
        if source is None:
            raise UserError("An encoder-decoder needs decoder_input_ids, or labels to make them from.")
        if self.family.starts_with_last_token:  # the start token in the files is for `generate` only
            return shift_around(source, pad)
        return shift_right(source, pad if start is None else start, pad)


def _array(name: str, value: Any) -> Any:
    try:
        array = value if isinstance(value, jax.Array) else np.asarray(value)
        numeric = array.dtype == bool or jnp.issubdtype(array.dtype, jnp.number)
    except ValueError:  # rows of different lengths
        numeric = False
    if not numeric:
        raise UserError(
            f"{name} is not an array of numbers with rows of equal length. Pad them, for example with tokenizer(..., padding=True)."
        )
    if array.dtype == bool or np.issubdtype(array.dtype, np.integer):
        return array.astype(np.int32)
    if name != "labels":
        raise UserError(f"{name} has type {array.dtype}; it takes integers.")
    return array.astype(np.float32)


def _check_range(name: str, ids: Any, size: int) -> None:
    if ids.size and not isinstance(ids, jax.core.Tracer):
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= size:
            raise UserError(
                f"{name} holds {low if low < 0 else high}, outside of 0 to {size - 1}. Are they another model's?"
            )
