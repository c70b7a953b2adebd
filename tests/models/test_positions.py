"""Frequencies of positions against the published formulas in loops, and values of other implementations."""

from __future__ import annotations

import math

import numpy as np

from lm_research.models.positions import rotary_frequencies, scaled_alibi, sinusoidal

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


def test_sinusoidal_wavelengths_may_end_with_the_last() -> None:
    """Rows 3 and 4 of width 7, by `XGLMSinusoidalPositionalEmbedding.get_embedding` of transformers 5.24."""
    expected = [
        [0.141120002, 0.0299954992, 0.000299999996, -0.989992499, 0.999550045, 0.99999994, 0.0],
        [-0.756802499, 0.0399893336, 0.000399999991, -0.653643608, 0.999200106, 0.99999994, 0.0],
    ]
    np.testing.assert_allclose(sinusoidal(np.array([[3, 4]]), 7, last_wavelength=True)[0], expected, atol=1e-6)


def test_scaled_alibi_is_rounded() -> None:
    """The ninth of 12 heads, whose slope is 2^-0.5, and the fourth, 2^-4: `build_alibi_tensor` of transformers 5.24's Falcon."""
    found = np.asarray(scaled_alibi(12, 1.0, np.array([[1, 3, 19, 257, 399]])))[0]
    assert found[8].tolist() == [0.70703125, 2.125, 13.4375, 181.0, 282.0]
    assert found[3, 3:].tolist() == [16.0, 25.0]
