"""The TPU kernels, interpreted, against plain attention: same values, same gradients, same dropout."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny
from lm_research.models.attention.mask import AttentionMask
from lm_research.models.attention.module import reference_attention
from lm_research.models.attention.tpu import Options, tile_heads, tpu_attend
from lm_research.models.positions import by_distance
from lm_research.models.rotary import make_rotation, rotate

# Small blocks and chunks, so that rows have several.
SMALL = Options(longest_block=128, skipping_block=128, longest_chunk=256)


class Problem(NamedTuple):
    """Shapes and the mask; `keys` of 0 is self-attention."""

    length: int = 256
    keys: int = 0
    heads: int = 2
    groups: int = 0
    width: int = 64
    causal: bool = False
    window: int = 0
    ahead: int = -1
    prefix: bool = False
    distances: bool = False
    key_bias: bool = False
    cap: float = 0.0
    rate: float = 0.0
    pairs: int = 0
    interleaved: bool = False
    packed: bool = False
    dtype: Any = jnp.float32
    options: Options = SMALL

    @property
    def positions(self) -> jax.Array:
        """Rotary positions: of packed documents of 100 tokens, one token later in the second row, or of one for all rows."""
        places = np.arange(self.length)
        return jnp.asarray(np.stack([places % 100, (places + 1) % 100]) if self.packed else places[None])


def arrays_and_mask(p: Problem, batch: int = 2, seed: int = 0) -> tuple[list[jax.Array], dict[str, Any]]:
    """Queries, keys, values, biases by distance and by key, an outer gradient; and the mask: documents, and padding on both sides."""
    rng, keys = np.random.default_rng(seed), p.keys or p.length
    groups = p.groups or p.heads
    sizes = [(p.length, p.heads), (keys, groups), (keys, groups)]
    qkv = [jnp.asarray(rng.normal(size=(batch, n, h, p.width)), p.dtype) for n, h in sizes]
    table = jnp.asarray(rng.normal(size=(p.heads, p.length + keys - 1)), jnp.float32) if p.distances else None
    by_key = jnp.asarray(rng.normal(size=(batch, p.heads, keys)), jnp.float32) if p.key_bias else None
    outer = jnp.asarray(rng.normal(size=(batch, p.length, p.heads, p.width)), p.dtype)
    segments = np.sort(rng.integers(1, 4, (batch, keys)), axis=1)
    segments[0, -keys // 8 :] = 0
    segments[-1, : keys // 8] = 0
    of_queries = np.sort(rng.integers(1, 4, (batch, p.length)), axis=1) if p.keys else segments
    prefix = jnp.asarray(rng.integers(0, 2, (batch, keys))) if p.prefix else None
    mask = dict(
        query_segments_BL=jnp.asarray(of_queries),
        key_segments_BS=jnp.asarray(segments),
        causal=p.causal,
        window=p.window,
        prefix_BS=prefix,
        window_ahead=p.ahead,
    )
    return [*qkv, table, by_key, outer], mask


def results(p: Problem, fast: bool, arrays: list[Any], mask: dict[str, Any]) -> list[np.ndarray]:
    """Output and gradients with respect to queries, keys, values and biases."""
    *inputs, outer = arrays
    frequencies = np.float32(100.0) ** -np.linspace(0.0, 1.0, p.pairs, dtype=np.float32)

    def attend(query: jax.Array, key: jax.Array, value: jax.Array, table: Any, by_key: Any) -> jax.Array:
        whole = AttentionMask(**mask, distances_HX=table, key_bias_BHS=by_key)
        others: Any = (p.rate, jax.random.key(3))
        if fast:
            rotation = None
            if p.pairs:
                heads = tile_heads(p.width)
                rotation = make_rotation(p.positions, frequencies, p.width, heads, p.interleaved, 1.1)
            return tpu_attend(query, key, value, whole, 0.3, *others, p.cap, p.options, rotation)
        if p.pairs:
            query, key = (rotate(x, p.positions, frequencies, p.interleaved, 1.1) for x in (query, key))
        bias = whole._replace(distances_HX=None).bias(0, 0)
        bias = bias if table is None else bias + by_distance(table, p.length)[None]
        return reference_attention(query, key, value, bias, *others, 0.3, p.cap)

    def run(inputs: list[Any], outer: jax.Array) -> Any:
        out, pull = jax.vjp(attend, *inputs)
        return out, pull(outer)

    return [np.asarray(x, np.float32) for x in jax.tree.leaves(tiny.jit(run)(inputs, outer))]


CASES = {
    "bidirectional": Problem(),
    "one block, dropout, distances": Problem(length=128, rate=0.2, distances=True),
    "causal, grouped heads, dropout": Problem(causal=True, heads=4, groups=2, width=32, rate=0.2, length=384),
    "window to both sides, ahead, cap": Problem(window=100, ahead=20, cap=2.0),
    "several blocks of distances, key bias": Problem(distances=True, key_bias=True, causal=True, rate=0.1),
    "cross, odd lengths, odd heads": Problem(length=114, keys=300, heads=3, rate=0.1),
    "rotary, odd length, odd heads": Problem(length=200, heads=3, pairs=32, window=100),
}
SLOW_CASES = {
    "prefix, causal window": Problem(causal=True, window=60, prefix=True, rate=0.1),
    "window and prefix": Problem(window=60, prefix=True),
    "wide heads": Problem(width=256, heads=1, causal=True, cap=1.0),
    "heads of 96": Problem(width=96, heads=4, rate=0.1),
    "heads of 128, shared": Problem(width=128, heads=4, groups=1, causal=True),
    "odd width": Problem(width=20, heads=3, rate=0.1),
    "more heads than a tile has": Problem(width=16, heads=12, groups=1, rate=0.1),
    "640": Problem(length=640, causal=True, rate=0.1, options=Options()),
    "384, distances": Problem(length=384, distances=True, rate=0.1, options=Options()),
    "distances, odd length": Problem(length=200, distances=True, key_bias=True),
    "rotary, packed, shared heads, part of a head": Problem(heads=8, groups=2, pairs=24, packed=True, causal=True),
    "rotary, interleaved, chunks": Problem(length=600, heads=1, width=128, pairs=64, interleaved=True, packed=True),
    "rotary, too few heads for a tile": Problem(heads=3, groups=1, pairs=16, packed=True),
    "rotary, padded heads": Problem(length=128, heads=8, width=20, pairs=10, interleaved=True),
    "odd heads, biases": Problem(heads=3, distances=True, key_bias=True, causal=True, rate=0.1),
    "keys of many chunks": Problem(length=128, keys=900, rate=0.1, distances=True),
}


@pytest.mark.parametrize(
    "p",
    [*CASES.values(), *(pytest.param(p, marks=pytest.mark.slow) for p in SLOW_CASES.values())],
    ids=[*CASES, *SLOW_CASES],
)
def test_equals_plain_attention(p: Problem) -> None:
    arrays, mask = arrays_and_mask(p)
    plain, fast = (results(p, kind, arrays, mask) for kind in (False, True))
    seen = np.asarray(AttentionMask(**mask).bias(0, 0) > -1).any(-1)[:, 0]  # queries without keys have zeros here
    if not seen.all():
        arrays[-1] = arrays[-1] * seen[..., None, None]
        plain, fast = (results(p, kind, arrays, mask) for kind in (False, True))
        assert not fast[0][~seen].any()
        plain[0] = plain[0] * seen[..., None, None]
    for got, expected in zip(fast, plain, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 + 1e-5 * np.abs(expected).max())


def test_a_query_that_sees_no_key_gets_zeros_and_changes_nothing() -> None:
    p = Problem(length=128, rate=0.1)
    arrays, mask = arrays_and_mask(p)
    unseen = np.asarray(mask["query_segments_BL"]) == 2
    mask["query_segments_BL"] = jnp.where(unseen, 9, mask["query_segments_BL"])
    out, query, key, value = results(p, True, arrays, mask)
    assert not out[unseen].any() and not query[unseen].any() and not key[unseen].any() and not value[unseen].any()
    assert all(np.isfinite(x).all() for x in (out, query, key, value)) and np.abs(out).max() > 0.1


def test_documents_of_a_row_do_not_see_each_other() -> None:
    """Not a bit of the other documents' outputs changes."""
    p = Problem(length=200, causal=True, rate=0.1)
    arrays, mask = arrays_and_mask(p)
    before = results(p, True, arrays, mask)[0]
    first = np.nonzero(np.asarray(mask["key_segments_BS"]) == 1)
    arrays[1], arrays[2] = (x.at[first].set(1e6) for x in arrays[1:3])
    after = results(p, True, arrays, mask)[0]
    others = np.asarray(mask["query_segments_BL"]) != 1
    np.testing.assert_array_equal(before[others], after[others])
    assert (before != after).any()


def test_bfloat16_differs_by_rounding() -> None:
    """Products of bfloat16 numbers are summed in float32, and rounded once more where probabilities and scores' gradients are."""
    p = Problem(length=128, rate=0.1, dtype=jnp.bfloat16)
    arrays, mask = arrays_and_mask(p)
    fast = results(p, True, arrays, mask)
    exact = results(p, False, [None if x is None else x.astype(jnp.float32) for x in arrays], mask)
    for got, expected in zip(fast, exact, strict=True):
        np.testing.assert_allclose(got, expected, atol=2**-6 * np.abs(expected).max())


def test_declared_cost_counts_the_heads_that_exist() -> None:
    """Three heads of 64 are two tiles of two: two products of 128 x 128 x 64 for each head and row, 2 operations each."""
    p = Problem(length=128, heads=3)
    arrays, mask = arrays_and_mask(p)
    traced = jax.make_jaxpr(lambda *qkv: tpu_attend(*qkv, AttentionMask(**mask)))(*arrays[:3])
    text = str(traced)
    flops = re.findall(r"CostEstimate\(flops=(\d+)", text)
    assert [int(n) for n in flops] == [2 * 2 * 2 * 3 * 128 * 128 * 64]
