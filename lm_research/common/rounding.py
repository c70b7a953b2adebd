"""Rounding integers up: to multiples, and to the few sizes for which programs are compiled."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

_MIN_LENGTH = 32  # of rows
_MOST_PADDING = 1.1  # size of all batches, relative to that of two programs, for which one program is compiled


def ceil_div(number: int, divisor: int) -> int:
    """Return number / divisor, rounded up."""
    return -(-number // divisor)


def round_up(number: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `number`."""
    return ceil_div(number, multiple) * multiple


def next_power_of_two(number: int) -> int:
    """Return the smallest of 1, 2, 4, 8, ... that is at least `number`."""
    return 1 << (max(number, 1) - 1).bit_length()


def bucket_size(number: int, least: int = 1) -> int:
    """Return the smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is at least `number` and `least`."""
    power = next_power_of_two(max(number, least))
    below = power * 3 // 4  # 3, 6, 12, ... between the previous power and this one
    return below if power >= 4 and below >= max(number, least) else power


def padded_length(longest: int) -> int:
    """Round a row length up to 32 times a power of two, so that few lengths are compiled."""
    return next_power_of_two(max(longest, _MIN_LENGTH))


def few_sizes(needed: ArrayLike, cost: float = 0.0) -> list[int]:
    """Choose one or two sizes by those that batches need: the largest, and one below it if that saves enough.

    Example: of [6, 6, 6, 8] they are 6 and 8, with 6.5 on average instead of 8; of [19, 20, 20, 20] it is 20.

    Args:
      needed: the least size of each batch.
      cost: time of compiling a second program, in batches of the largest size.
    """
    needed_N = np.asarray(needed)
    largest = int(needed_N.max())
    means = {int(low): float(np.where(needed_N <= low, low, largest).mean()) for low in np.unique(needed_N)}
    low = min(means, key=means.__getitem__)
    saved = len(needed_N) * (1 - means[low] / largest)
    return [low, largest] if largest > _MOST_PADDING * means[low] and saved > cost else [largest]
