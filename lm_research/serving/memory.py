"""Estimates of the memory that a request needs, so that it is refused before the process runs out of memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_research.errors import UserError
from lm_research.models.attention.cache import capacity
from lm_research.parallel.hardware import free_bytes, platform

MAX_SCORE_BYTES = 1 << 30  # attention scores of one forward pass over several texts
_COPIES = 2  # of scores that exist at the same time: before and after the softmax


def score_bytes(arch: Any, queries: int, keys: int) -> int:
    """Return the size of the float32 attention scores of one sequence in one layer."""
    return _COPIES * 4 * arch.num_heads * queries * keys


def cache_bytes(arch: Any, rows: int, slots: int, source_length: int = 0) -> int:
    """Return the size of the keys and values of all layers, which are in float32 on CPUs.

    Args:
      arch: the decoder.
      rows: number of sequences.
      slots: tokens per sequence; a layer with a window keeps only that many.
      source_length: tokens of the encoder per sequence.
    """
    specs = [(spec, capacity(spec.reach, slots, step=1)) for spec in arch.layer_specs]
    values = sum(spec.num_kv_heads * spec.head_size * (kept + source_length) for spec, kept in specs)
    return 2 * rows * values * (4 if platform() == "cpu" else np.dtype(arch.compute_dtype).itemsize)


def max_batch_size(field: str, arch: Any, length: int) -> int:
    """Return how many texts of `length` tokens one forward pass may have.

    Raises:
      UserError: the memory does not suffice for one; the message starts with `field`.
    """
    arch = arch.encoder or arch
    needed = score_bytes(arch, length, length)
    check_free(field, needed)
    return max(1, MAX_SCORE_BYTES // max(1, needed))


def check_search(field: str, arch: Any, lengths: Sequence[int], texts: int, max_new_tokens: int) -> None:
    """Raise a UserError if the memory does not suffice to generate texts.

    Args:
      field: the request's field that the message names.
      arch: the model.
      lengths: tokens of each prompt.
      texts: number of texts, or beams, of all prompts.
      max_new_tokens: new tokens of each text.
    """
    longest = max(lengths)
    if arch.encoder is None:
        slots, source_length = longest + max_new_tokens, 0
        needed = len(lengths) * score_bytes(arch, longest, slots)
    else:
        slots, source_length = max_new_tokens + 1, longest
        needed = len(lengths) * score_bytes(arch.encoder, longest, longest)
    check_free(field, needed + cache_bytes(arch, texts, slots, source_length))


def check_free(field: str, needed: int) -> None:
    """Raise a UserError if `needed` bytes exceed half of the free memory; the rest is left for other requests."""
    if needed > (free := free_bytes() / 2):
        raise UserError(
            f"{field}: this needs about {needed / 2**30:,.1f} GiB of memory, but the server has {free / 2**30:,.1f} GiB for it. Send "
            "fewer or shorter texts."
        )
