"""Memory that requests may take: known by arithmetic before it is taken, because a machine without memory ends the process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_research.errors import UserError
from lm_research.models.attention.cache import capacity
from lm_research.parallel.hardware import free_bytes

PASS = 1 << 30  # bytes that scores of one pass over several texts may take
_COPIES = 2  # of scores that are there at once: before the softmax and behind it


def score_bytes(arch: Any, queries: int, keys: int) -> int:
    """Of the attention of one row, in float32."""
    return _COPIES * 4 * arch.num_heads * queries * keys


def cache_bytes(arch: Any, rows: int, slots: int, places: int = 0) -> int:
    """Of the keys and values of all layers, in `slots` of the text (layers with a window keep that much) and `places` of an encoder's."""
    specs = [(spec, capacity(spec.reach, slots, step=1)) for spec in arch.layer_specs]
    numbers = sum(spec.num_kv_heads * spec.head_size * (kept + places) for spec, kept in specs)
    return 2 * rows * numbers * np.dtype(arch.compute_dtype).itemsize


def rows_at_once(field: str, arch: Any, length: int) -> int:
    """How many texts of a length are read in one pass.

    Raises:
      UserError: there is not even memory for one.
    """
    arch = arch.encoder or arch
    needed = score_bytes(arch, length, length)
    check_free(field, needed)
    return max(1, PASS // max(1, needed))


def check_search(field: str, arch: Any, lengths: Sequence[int], texts: int, most: int) -> None:
    """Raises a UserError if there is no memory for prompts of these lengths and their texts, each of `most` new tokens."""
    longest = max(lengths)
    if arch.encoder is None:
        slots, places = longest + most, 0
        needed = len(lengths) * score_bytes(arch, longest, slots)
    else:
        slots, places = most + 1, longest
        needed = len(lengths) * score_bytes(arch.encoder, longest, longest)
    check_free(field, needed + cache_bytes(arch, texts, slots, places))


def check_free(field: str, needed: int) -> None:
    """Half of what is free counts: other requests come, too."""
    if needed > (free := free_bytes() / 2):
        raise UserError(
            f"{field}: to read this takes about {needed / 2**30:,.1f} GiB of memory, and this server has {free / 2**30:,.1f} GiB for it. "
            "Send fewer or shorter texts."
        )
