"""Positions against the published formulas in loops, and values of other implementations."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from lm_research.models.positions import alibi_by_key, alibi_table, distance_buckets, sinusoidal


def test_sinusoidal_wavelengths_may_end_with_the_last() -> None:
    """Rows 3 and 4 of width 7, by `XGLMSinusoidalPositionalEmbedding.get_embedding` of transformers 5.24."""
    expected = [
        [0.141120002, 0.0299954992, 0.000299999996, -0.989992499, 0.999550045, 0.99999994, 0.0],
        [-0.756802499, 0.0399893336, 0.000399999991, -0.653643608, 0.999200106, 0.99999994, 0.0],
    ]
    np.testing.assert_allclose(sinusoidal(np.array([[3, 4]]), 7, last_wavelength=True)[0], expected, atol=1e-6)


def test_alibi_by_key_is_rounded() -> None:
    """The ninth of 12 heads, whose slope is 2^-0.5, and the fourth, 2^-4: `build_alibi_tensor` of transformers 5.24's Falcon."""
    found = np.asarray(alibi_by_key(12, np.array([[1, 3, 19, 257, 399]]), 1.0))[0]
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
