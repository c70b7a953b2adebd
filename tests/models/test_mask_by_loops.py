"""Masks and cache slots against loops over every query and key."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from lm_research.models.attention.cache import Cache, CacheSlots, LayerCache, capacity, write, write_at
from lm_research.models.attention.mask import (
    MASKED,
    AttentionMask,
    attention_bias,
    block_bias,
    chunk_segments,
    document_positions,
    in_window,
    positions_from_segments,
)

SEGMENTS = np.array([[0, 1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 2, 3]])
PREFIX = np.array([[0, 1, 1, 0, 1, 0, 0], [2, 0, 0, 0, 0, 1, 0]])


def seen(query: int, key: int, causal: bool, window: int, ahead: int = -1) -> bool:
    """A window is the latest `window` keys where nothing later is seen, else half of it on either side, or `ahead` later ones."""
    if causal:
        return 0 <= query - key < (window or 10**9)
    if ahead >= 0 and key > query:
        return not window or key - query <= ahead
    return not window or abs(query - key) <= window // 2


NEAR = [(causal, window, -1) for causal in (False, True) for window in (0, 1, 2, 3, 4)]


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize(("causal", "window", "ahead"), [*NEAR, (False, 2, 0), (False, 2, 2), (False, 4, 1)])
def test_visibility_of_positions(causal: bool, window: int, ahead: int, prefix: bool) -> None:
    """Whole rows, and the block of queries 2 to 5 and keys 1 to 6."""
    for q, k in ((range(7), range(7)), (range(2, 6), range(1, 7))):
        given = PREFIX[:, k] if prefix else None
        found = attention_bias(SEGMENTS[:, q], SEGMENTS[:, k], causal, window, given, q[0], k[0], ahead)
        expected = np.full((2, 1, len(q), len(k)), -1e9, np.float32)
        for row, (i, query), (j, key) in itertools.product(range(2), enumerate(q), enumerate(k)):
            if SEGMENTS[row, query] == SEGMENTS[row, key] and (
                seen(query, key, causal, window, ahead) or (prefix and PREFIX[row, key] > 0)
            ):
                expected[row, 0, i, j] = 0.0
        np.testing.assert_array_equal(found, expected)
    assert MASKED == -1e9 and found.dtype == jnp.float32


def test_blocks_of_a_bias_by_distance() -> None:
    """Distances from 1 - 7 to 7 - 1, one number each for two heads; any block is that part of the whole."""
    numbers = np.random.default_rng(0).normal(size=(2, 13)).astype(np.float32)
    whole = np.array([[[numbers[h, key - query + 6] for key in range(7)] for query in range(7)] for h in range(2)])
    for q, k in ((range(7), range(7)), (range(2, 6), range(1, 7)), (range(5, 7), range(3))):
        mask = AttentionMask(SEGMENTS[:, q], SEGMENTS[:, k], causal=True, window=3, distances_HX=jnp.asarray(numbers))
        plain = attention_bias(SEGMENTS[:, q], SEGMENTS[:, k], True, 3, None, q[0], k[0])
        np.testing.assert_allclose(
            mask.bias(q[0], k[0]), plain + whole[None, :, q[0] : q[-1] + 1, k[0] : k[-1] + 1], rtol=1e-6
        )
        np.testing.assert_array_equal(mask._replace(distances_HX=None).bias(q[0], k[0]), plain)
        by_key = jnp.asarray(numbers[None, :, : len(k)])  # one number for each head and key of the block
        found = mask._replace(distances_HX=None, key_bias_BHS=by_key).bias(q[0], k[0])
        np.testing.assert_array_equal(found, plain + by_key[:, :, None])


def test_places_count_from_the_first_token() -> None:
    assert positions_from_segments(jnp.array([[0, 0, 1, 1], [1, 1, 2, 0]])).tolist() == [[-2, -1, 0, 1], [0, 1, 2, 3]]
    assert document_positions(jnp.array([[0, 1, 0, 1], [1, 1, 1, 0]])).tolist() == [[-1, 0, -1, 1], [0, 1, 2, -1]]


def test_without_options_tokens_see_their_whole_segment() -> None:
    same = SEGMENTS[:, None, :, None] == SEGMENTS[:, None, None, :]
    for found in (attention_bias(SEGMENTS, SEGMENTS), AttentionMask(SEGMENTS, SEGMENTS).bias(0, 0)):
        np.testing.assert_array_equal(found == 0, same)
    assert in_window(jnp.arange(-3, 4), 4, causal=False).tolist() == [False, True, True, True, True, True, False]
    slots = CacheSlots(jnp.int32(0), jnp.zeros((1, 1)), jnp.ones((1, 1, 4)), jnp.zeros((1, 1, 4)))
    assert slots.shared == 0 and LayerCache(jnp.zeros(1), jnp.zeros(1)).window == 0


@pytest.mark.parametrize("ahead", [-1, 0, 1, 5])
def test_windows_with_more_or_fewer_later_positions(ahead: int) -> None:
    """Two earlier positions of a window of 4; as many later ones, or the given number."""
    one = jnp.ones((1, 7), int)
    found = attention_bias(one, one, window=4, window_ahead=ahead)[0, 0]
    mask = AttentionMask(one, one, window=4, window_ahead=ahead)
    np.testing.assert_array_equal(mask.bias(0, 0)[0, 0], found)
    for query, key in itertools.product(range(7), repeat=2):
        assert (found[query, key] == 0) == (-2 <= key - query <= (2 if ahead < 0 else ahead))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 8])
def test_chunks_are_shared_by_tokens_of_one_document_in_one_chunk(chunk: int) -> None:
    """Positions count from anywhere in a document; a row of 7 spans few enough chunks that none is confused with another."""
    segments = np.array([[1, 1, 1, 1, 1, 2, 2]])
    for first in range(9):
        positions = np.array([[first, first + 1, first + 2, first + 3, first + 4, 0, 1]])
        found = chunk_segments(jnp.asarray(segments), jnp.asarray(positions), chunk)[0].tolist()
        for i, j in itertools.combinations(range(7), 2):
            same = segments[0, i] == segments[0, j] and positions[0, i] // chunk == positions[0, j] // chunk
            assert (found[i] == found[j]) == same, (first, i, j)
    assert chunk_segments(jnp.asarray(segments), jnp.asarray(positions), chunk).dtype == jnp.int32
    padded = chunk_segments(jnp.array([[0, 0, 1]]), jnp.array([[0, 1, 0]]), 1)[0].tolist()
    assert padded[2] not in padded[:2]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("slot", [2, [0, 3]])
def test_new_tokens_take_their_slots(slot: int | list[int], flat: bool) -> None:
    """Two rows of two heads with five slots, of which two new tokens take those from `slot` on; four slots are read."""
    draw = np.random.default_rng(0)
    keys, values = draw.normal(size=(2, 2, 2, 5, 3)).astype(np.float32)
    new = draw.normal(size=(2, 2, 2, 2, 3)).astype(np.float32)  # keys and values [B, L, G, K]
    expected = [keys.copy(), values.copy()]
    for part, row, head, token in itertools.product(range(2), repeat=4):
        at = (slot if isinstance(slot, int) else slot[row]) + token
        expected[part][row, head, at] = new[part, row, token, head]

    def shaped(x):
        return jnp.asarray(x.reshape(4, 5, 3) if flat else x)

    slots = CacheSlots(jnp.asarray(slot), jnp.zeros((2, 2), int), jnp.ones((1, 2, 4), bool), jnp.zeros((1, 2, 4), int))
    layer = LayerCache(shaped(keys), shaped(values), slots)
    given = layer.update(jnp.asarray(new[0]), jnp.asarray(new[1]))
    for stored, read, one in zip((layer.key, layer.value), given, expected, strict=True):
        np.testing.assert_array_equal(stored.reshape(2, 2, 5, 3), one)
        np.testing.assert_array_equal(read.reshape(2, 2, 4, 3), one[..., :4, :])
    np.testing.assert_array_equal(write(shaped(keys), jnp.asarray(new[0]).swapaxes(1, 2), jnp.asarray(slot)), layer.key)


def codes(slots_BL: np.ndarray) -> np.ndarray:
    """Keys [B, L, 3, 1] that are numbers of their row, head and slot."""
    row, head = np.arange(len(slots_BL))[:, None, None], np.arange(3)
    return (1000.0 * row + 100 * head + slots_BL[..., None])[..., None]


# Window, slots, prompt, tokens of a step, and whether beams share the prompt.
RINGS = [
    (0, 12, 5, 1, False), (3, 12, 5, 1, False), (3, 12, 2, 1, False), (4, 18, 7, 2, False), (1, 12, 5, 1, False), (9, 6, 3, 1, False),
    (0, 11, 5, 2, True), (3, 17, 5, 2, True), (3, 30, 3, 4, True), (3, 30, 4, 4, True), (3, 20, 2, 3, True), (1, 14, 5, 2, True),
]  # fmt: skip


@pytest.mark.parametrize(("window", "slots", "prompt", "step", "beams"), RINGS)
@pytest.mark.parametrize("kind", ["apart", "flat", "each row", "flat, each row"])
def test_rings_hold_the_latest_slots(kind: str, window: int, slots: int, prompt: int, step: int, beams: bool) -> None:
    """After a prompt and each of up to five steps: the entries that are said to hold a slot do, and none that a token attends to is missing.

    "flat" merges rows and heads; in "each row" prompts are padded on the right, and each row is at its own slot.
    """
    flat, by_row = "flat" in kind, "each row" in kind
    if by_row and beams:
        return
    shared, size = prompt * beams, capacity(window, slots, step, prompt * beams)
    ends = np.array([prompt, prompt // 3 + 1 if by_row else prompt])
    shape = (6, size, 1) if flat else (2, 3, size, 1)
    layer = LayerCache(jnp.full(shape, -1.0), jnp.full(shape, -1.0), window=window)
    tokens = np.broadcast_to(np.arange(prompt), (2, prompt))
    for number in range(6):
        first = ends + step * (number - 1) if number else np.zeros(2, int)
        tokens = first[:, None] + np.arange(step if number else prompt)
        count, width = tokens.shape[1], slots if number else prompt
        if number and tokens.max() >= slots:
            break
        at = jnp.asarray(first if by_row and number else first[0])
        end = jnp.asarray(ends) if by_row else None
        ones, zeros = jnp.ones((1, count, width), bool), jnp.zeros((1, count, width), int)
        layer.slots = CacheSlots(at, jnp.zeros(tokens.shape, int), ones, zeros, shared, end)
        given = layer.update(jnp.asarray(codes(tokens)), jnp.asarray(-codes(tokens)))
        holds = layer.slots.slot_of_entry(window, size) if number else None
        if number == 0 and not layer.slots.in_order(window, size):  # a prompt longer than its ring attends to itself
            np.testing.assert_array_equal(given[0], codes(tokens).swapaxes(1, 2))
            np.testing.assert_array_equal(given[1], -codes(tokens).swapaxes(1, 2))
            continue
        if holds is None:  # entry s is slot s
            holds = np.where(np.arange(width) <= tokens[:, -1:], np.arange(width), -1)
            assert width <= size
        holds = np.broadcast_to(holds, (2, holds.shape[1]))
        expected = codes(holds).swapaxes(1, 2)
        for stored, read, wanted in zip((layer.key, layer.value), given, (expected, -expected), strict=True):
            stored = np.asarray(stored).reshape(2, 3, size, 1)[:, :, : holds.shape[1]]
            np.testing.assert_array_equal(read, stored.reshape(read.shape))
            np.testing.assert_array_equal(np.where(holds[:, None, :, None] < 0, 0, stored - wanted), 0)
        for row in range(2):
            kept = set(holds[row].tolist()) - {-1}
            assert len(kept) == (holds[row] >= 0).sum() and max(kept) == tokens[row, -1]
            latest = [*range(prompt)][-(window - 1) or prompt :] if window else [*range(prompt)]
            written = [*range(ends[row], tokens[row, -1] + 1)] if number else []
            if beams:  # all tokens of a step have one position
                assert kept >= {*latest, *written[-window * step :]}
            else:
                seen = [*range(tokens[row, -1] + 1)]
                assert kept >= set(seen[-(window + count - 1) if number and window else 0 :])


def test_blocks_see_their_neighbors_and_the_ends() -> None:
    # Zaheer et al. 2020, figure 1. Blocks of 2, the last of which has one position; random blocks repeat the first.
    rows = ["++++++", "R++--+", "R+++-+", "R-++++", "R--+++", "++++++"]
    values = {"+": 0.0, "-": MASKED, "R": np.log(3)}
    expected = np.kron([[values[one] for one in row] for row in rows], np.ones((2, 2)))[:11, :11]
    np.testing.assert_allclose(block_bias(11, 2, 2), expected, rtol=1e-6)


def test_tokens_of_a_single_row_need_not_be_adjacent() -> None:
    new = jnp.array([[[[7.0], [8.0]]]])
    for entries in (jnp.array([[4, 0]]), jnp.array([4, 0])):
        assert write_at(jnp.zeros((1, 1, 5, 1)), new, entries)[0, 0, :, 0].tolist() == [8, 0, 0, 0, 7]


def test_segments_of_a_cache() -> None:
    """Of segments of one and of two layers: pairs for each layer, and back."""
    cache = Cache(
        keys=(("k0",), ("k1", "k2")),
        values=(("v0",), ("v1", "v2")),
        cross_keys=(("c0",), ("c1", "c2")),
        cross_values=(("d0",), ("d1", "d2")),
    )
    assert cache.segment(1) == ((("k1", "v1"), ("k2", "v2")), (("c1", "d1"), ("c2", "d2")))
    assert cache._replace(cross_keys=()).segment(0) == ((("k0", "v0"),), None)
    assert cache._replace(keys=(), values=()).with_segments([cache.segment(0), cache.segment(1)]) == cache
