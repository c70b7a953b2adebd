"""Frequencies of rotary positions against the published formulas, in loops."""

from __future__ import annotations

import math

import numpy as np

from lm_research.models.positions import rotary_frequencies

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192.0,
}


def test_llama3_stretches_long_waves() -> None:
    """As Meta's code for Llama 3.1: waves longer than 8192 / 1 by the factor, those under 8192 / 4 not, those between in part."""
    expected, kinds = [], set()
    for frequency in (500_000.0 ** (-2 * i / 128) for i in range(64)):
        wave = 2 * math.pi / frequency
        if wave < 8192 / 4:
            kinds.add("short")
        elif wave > 8192:
            kinds.add("long")
            frequency /= 8
        else:
            kinds.add("between")
            smooth = (8192 / wave - 1) / (4 - 1)
            frequency = (1 - smooth) * frequency / 8 + smooth * frequency
        expected.append(frequency)
    assert len(kinds) == 3
    np.testing.assert_allclose(rotary_frequencies(128, 500_000.0, {"type": "llama3", **LLAMA3}), expected, rtol=1e-6)


def test_linear_scaling_divides_positions() -> None:
    plain = [10_000.0 ** (-2 * i / 8) for i in range(4)]
    np.testing.assert_allclose(rotary_frequencies(8, 10_000.0, {}), plain, rtol=1e-6)
    found = rotary_frequencies(8, 10_000.0, {"type": "linear", "factor": 4.0})
    np.testing.assert_allclose(found, np.array(plain) / 4, rtol=1e-6)
