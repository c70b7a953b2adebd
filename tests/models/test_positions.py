"""Positions against the published formulas in loops, and values of other implementations."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from lm_research.models.positions import (
    alibi_table,
    distance_buckets,
    rotary_frequencies,
    rotate,
    scaled_alibi,
    sinusoidal,
)

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


@pytest.mark.parametrize("width", [6, 7])
def test_waves(width: int) -> None:
    """sin(p / 10000^(2 i / D)) for each i, then cos (Vaswani et al. 2017, section 3.5)."""
    places = [0, 1, 1000]
    expected = [
        [math.sin(p / 10_000 ** (2 * i / width)) for i in range((width + 1) // 2)]
        + [math.cos(p / 10_000 ** (2 * i / width)) for i in range(width // 2)]
        for p in places
    ]
    np.testing.assert_allclose(sinusoidal(jnp.array([places]), width)[0], expected, atol=1e-4)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotations(interleaved: bool) -> None:
    """The pair (a, b) becomes (a cos t - b sin t, b cos t + a sin t) with t = position x frequency; a fifth element is kept."""
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 5))
    places, frequencies, expected = [[2, 700]], np.array([1.0, 0.01]), x.copy()
    for row, place in enumerate(places[0]):
        for head in range(3):
            for pair, frequency in enumerate(frequencies):
                i, j = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 2)
                a, b, t = x[0, row, head, i], x[0, row, head, j], place * frequency
                expected[0, row, head, i] = a * math.cos(t) - b * math.sin(t)
                expected[0, row, head, j] = b * math.cos(t) + a * math.sin(t)
    frequencies = frequencies.astype(np.float32)
    found = rotate(jnp.asarray(x, jnp.float32), jnp.array(places), frequencies, interleaved)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    whole = rotate(jnp.asarray(x[..., :4], jnp.float32), jnp.array(places), frequencies, interleaved)
    np.testing.assert_allclose(whole, expected[..., :4], atol=1e-4)
    low = rotate(jnp.asarray(x, jnp.bfloat16), jnp.array(places), frequencies, interleaved)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), expected, atol=0.03)  # the angles are not rounded


@pytest.mark.parametrize("bidirectional", [False, True])
def test_buckets_of_distances(bidirectional: bool) -> None:
    """Raffel et al. 2019, section 2.1: exact up to half of a side's buckets, logarithmic up to the maximum, then one for all."""
    buckets, most = 32, 128
    side = buckets // 2 if bidirectional else buckets
    for distance in range(-300, 301):
        far, bucket = -distance, 0
        if bidirectional:
            far, bucket = abs(distance), side * (distance > 0)
        if far < side // 2:
            bucket += max(far, 0)
        else:
            part = math.log(far / (side // 2)) / math.log(most / (side // 2))
            bucket += min(side // 2 + int(part * (side - side // 2) + 1e-6), side - 1)
        assert distance_buckets(np.array([distance]), buckets, most, bidirectional).tolist() == [bucket], distance


def test_alibi_subtracts_its_slope_per_unit_of_distance() -> None:
    """Two heads have the slopes 2^-4 and 2^-8 (Press et al. 2022, section 3)."""
    expected = [[-2 / 16, -1 / 16, 0, -1 / 16, -2 / 16], [-2 / 256, -1 / 256, 0, -1 / 256, -2 / 256]]
    assert alibi_table(2, 3).tolist() == expected
