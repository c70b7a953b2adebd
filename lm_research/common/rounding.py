"""Rounding integers up: to multiples, and to the few sizes for which programs are compiled."""

from __future__ import annotations


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
