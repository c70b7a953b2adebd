"""Position encodings: sinusoidal embeddings, and biases by distance (rotations are in rotary.py).

Legend: lm_research/models/__init__.py; here R is buckets.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np


def sinusoidal(positions_BL: jax.Array, width: int, last_wavelength: bool = False) -> jax.Array:
    """Sines, then cosines, of each position at `width` / 2 wavelengths from 2 pi to 10000 x 2 pi, [B, L, D].

    Vaswani et al. 2017, section 3.5, with the two halves concatenated instead of interleaved, as in the authors' code. An odd width has
    one more sine. Wavelengths end before 10000 x 2 pi, or with it if `last_wavelength` (fairseq); then an odd width has a 0 at its end.
    """
    if last_wavelength:
        half = width // 2
        frequency_H = np.exp(np.arange(half) * (-math.log(10000.0) / max(1, half - 1))).astype(np.float32)
        angle_BLH = positions_BL[..., None].astype(jnp.float32) * frequency_H
        zero_BLO = jnp.zeros((*positions_BL.shape, width % 2))
        return jnp.concatenate([jnp.sin(angle_BLH), jnp.cos(angle_BLH), zero_BLO], axis=-1)
    frequency_D = 1.0 / 10000.0 ** (2 * (np.arange(width) // 2) / width)
    angle_BLD = positions_BL[..., None].astype(jnp.float32) * frequency_D.astype(np.float32)
    return jnp.concatenate([jnp.sin(angle_BLD[..., 0::2]), jnp.cos(angle_BLD[..., 1::2])], axis=-1)


def alibi_slopes(heads: int) -> np.ndarray:
    """The amount that each head subtracts from its scores per unit of distance, [H] in float32 (Press et al. 2022, section 3).

    If H is a power of two, 2^(-8 n / H) for n from 1 to H. Otherwise the slopes of the next smaller power of two, followed by every second
    slope of the next larger one.
    """
    power = 2 ** int(math.log2(heads))
    slopes = 2.0 ** (-8.0 / power * np.arange(1, power + 1))
    between = 2.0 ** (-4.0 / power * np.arange(1, 2 * (heads - power), 2))
    return np.concatenate([slopes, between]).astype(np.float32)


def distance_buckets(distance: np.ndarray, buckets: int, max_distance: int, bidirectional: bool) -> np.ndarray:
    """Bucket of each distance (key position minus query position), int32 of the same shape.

    Raffel et al. 2019, section 2.1: half of the buckets hold one distance each; the others hold ranges that grow logarithmically up to
    `max_distance`, and the last one all larger distances. Bidirectional stacks use half of the buckets for keys on the right; causal
    stacks put those keys into bucket 0.
    """
    base = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        base = np.where(distance > 0, buckets, 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = buckets // 2
    # In float32, as in training: in float64 some distances would change their bucket.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact), dtype=np.float32)
    far = exact + (ratio / np.float32(math.log(max_distance / exact)) * np.float32(buckets - exact)).astype(np.int64)
    return (base + np.where(distance < exact, distance, np.minimum(far, buckets - 1))).astype(np.int32)


def relative_bias(
    table_RH: jax.Array, query_length: int, key_length: int, max_distance: int, bidirectional: bool
) -> jax.Array:
    """Bias of each head for the distance between query and key, [1, H, L, S] in float32."""
    distance_LS = np.arange(key_length)[None, :] - np.arange(query_length)[:, None]
    bucket_LS = distance_buckets(distance_LS, len(table_RH), max_distance, bidirectional)
    # A product with one-hot rows: its gradient is a matrix product instead of a scatter.
    one_hot_LSR = jax.nn.one_hot(bucket_LS, len(table_RH), dtype=jnp.float32)
    return jnp.einsum("LSR,RH->HLS", one_hot_LSR, table_RH.astype(jnp.float32))[None]


def distance_table(table_RH: jax.Array, length: int, max_distance: int, bidirectional: bool) -> jax.Array:
    """Bias of each head by distance, of L queries and keys: [H, 2 L - 1] for distances 1 - L to L - 1, in float32."""
    bucket_X = distance_buckets(np.arange(1 - length, length), len(table_RH), max_distance, bidirectional)
    one_hot_XR = jax.nn.one_hot(bucket_X, len(table_RH), dtype=jnp.float32)
    return jnp.einsum("XR,RH->HX", one_hot_XR, table_RH.astype(jnp.float32))


def alibi_table(heads: int, length: int) -> np.ndarray:
    """ALiBi's bias of each head by distance, in the form of `distance_table`: minus its slope times the absolute distance."""
    return -alibi_slopes(heads)[:, None] * np.abs(np.arange(1 - length, length, dtype=np.float32))


def alibi_by_key(heads: int, positions_BX: jax.Array, scale: float = 0.0) -> jax.Array:
    """ALiBi's bias as slope x position of each key, [B, H, ...] in float32; with a `scale`, times it, and all factors in bfloat16.

    It differs from a bias by distance by a constant per query, which softmax ignores, and by rounding (Falcon's attention in PyTorch).
    """

    def rounded(x: jax.Array) -> jax.Array:
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7) if scale else x

    slopes_HX = rounded(jnp.asarray(alibi_slopes(heads))).reshape(-1, *(1,) * (positions_BX.ndim - 1))
    return (scale or 1.0) * rounded(slopes_HX * rounded(positions_BX[:, None].astype(jnp.float32)))


def by_distance(values_HX: jax.Array | np.ndarray, query_length: int) -> jax.Array:
    """Arrange X = L + S - 1 values by distance as [H, L, S]: entry (l, s) is value L - 1 - l + s.

    Example with L = 2, S = 2: values [a, b, c] become [[b, c], [a, b]]. A gather would have a scatter as its gradient. Instead, the values
    are repeated and cut into rows of X + 1, each of which starts one value later than the row before: [a, b, c, a], [b, c, a, b].
    """
    heads, count = values_HX.shape
    copies = jnp.tile(values_HX, (1, query_length + 1))[:, : query_length * (count + 1)]
    shifted_HLX = copies.reshape(heads, query_length, count + 1)
    return shifted_HLX[:, ::-1, : count - query_length + 1]


def embedded_distances(distance: np.ndarray, rows: int, max_distance: int) -> np.ndarray:
    """Row of each distance (query position minus key position) in the table of "disentangled" positions, int32 of the same shape.

    The middle row is distance 0. Larger distances are clipped to the first and the last row. With a `max_distance` above 0, only the middle
    half of the rows are single distances; the outer ones are ranges that grow logarithmically up to it (DeBERTa-v2).
    """
    middle = (rows + 1) // 4  # largest single distance
    if max_distance:
        # In float32, as in training: in float64 some distances would change their row.
        far = np.log(np.maximum(np.abs(distance), middle).astype(np.float32) / np.float32(middle), dtype=np.float32)
        far /= np.log(np.float32((max_distance - 1) / middle), dtype=np.float32)
        far = np.ceil(far * np.float32(middle - 1)).astype(np.int64) + middle
        distance = np.where(np.abs(distance) <= middle, distance, np.sign(distance) * far)
    return np.clip(distance + rows // 2, 0, rows - 1).astype(np.int32)


def shifted_rows(values_BHLX: jax.Array) -> jax.Array:
    """Arrange X = 2 L - 1 values by distance in each of L rows as [B, H, L, L]: entry (l, s) is value L - 1 - l + s of row l.

    As `by_distance`, but each row has values of its own: all are padded to 2 L, and cut into rows of 2 L - 1 from value L - 1 on.
    """
    *front, length, count = values_BHLX.shape
    flat = jnp.pad(values_BHLX, ((0, 0),) * (len(front) + 1) + ((0, 1),)).reshape(*front, -1)
    flat = flat[..., length - 1 : length - 1 + length * count]
    return flat.reshape(*front, length, count)[..., :length]
