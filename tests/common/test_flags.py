"""Flags with bounds accept both ends, and nothing beyond."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

from lm_research.common.flags import bounded


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (bounded(int, 1, 3), {"1": 1, "3": 3}, ["0", "4", "1.5", "x", "", "1" * 5000]),
        (bounded(float, 0.5, 2.0), {"0.5": 0.5, "2": 2.0}, ["0.49", "2.01", "nan", "inf", "x"]),
        (bounded(float, 0, 1e15), {"0": 0.0, "1e15": 1e15}, ["-0.1", "1.1e15"]),
    ],
)
def test_ends(read: Callable[[str], float], good: dict[str, float], bad: list[str]) -> None:
    assert {text: read(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="is not a .*number from"):
            read(text)
