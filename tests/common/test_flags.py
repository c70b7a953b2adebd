"""Flags with bounds take both ends, and nothing beyond."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from lm_research.common.flags import number, whole


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (whole(1, 3), {"1": 1, "3": 3}, ["0", "4", "1.5", "x", "", "1" * 5000]),
        (whole(), {"1": 1, "2147483647": 2**31 - 1}, ["0", "-1", "2147483648"]),
        (number(0.5, 2.0), {"0.5": 0.5, "2": 2.0}, ["0.49", "2.01", "nan", "inf", "x"]),
        (number(), {"0": 0.0, "1e15": 1e15}, ["-0.1", "1.1e15"]),
    ],
)
def test_ends(read: Callable[[str], float], good: dict[str, float], bad: list[str]) -> None:
    assert {text: read(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="is no .*number from"):
            read(text)
