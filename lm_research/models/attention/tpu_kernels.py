"""The kernels of tpu.py: the computation of one program, for a tile of heads, a block of queries and a chunk of keys.

Scores are transposed, [N, Q]: the softmax's maxima and sums, and all other numbers of a query, then are along lanes, as in memory, and
are broadcast and reduced over sublanes without moves between lanes. Outputs and gradients of queries are accumulated as [K, Q], so that
a head of 64 fills its registers, and transposed once per block.

Legend: Q queries and N keys of a block, K head width, J key blocks of a row, W = Q + N distances of a pair of blocks.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lm_research.models.attention.mask import in_window
from lm_research.models.layers import mix_bits

# Scores are logarithms to base 2, because the hardware computes exp2.
LOG2_E = math.log2(math.e)
# The score of a masked key, and the initial maximum. exp2 of their difference is 0, and both are finite, so that it is defined.
_MASKED, _INITIAL_MAX = -1e30, -5e29


class Static(NamedTuple):
    """Compile-time settings.

    Attributes:
      causal, window, window_ahead: as for `attention_bias`.
      scale, cap, rate: factor on the scores, their soft cap (0 for none), and the dropout rate.
      whole: shape [B, H, L, S] by which dropout numbers the scores.
      lengths: L and S.
      heads, copies, width: query heads of a tile, query heads that share a key/value head, and K.
      all_heads: query heads of all tiles; the last tile may have fewer.
      queries, keys: Q and N.
      blocks: numbers of blocks of queries and of keys.
      chunk: key blocks of a program.
      has_distances: whether there is a bias by distance.
      pairs: number of rotated pairs of elements of a head; 0 if the kernels do not rotate queries and keys.
      interleaved: whether the elements of a pair are adjacent.
      interpret: whether the kernels are interpreted.
    """

    causal: bool
    window: int
    window_ahead: int
    scale: float
    cap: float
    rate: float
    whole: tuple[int, int, int, int]
    lengths: tuple[int, int]
    heads: int
    copies: int
    width: int
    all_heads: int
    queries: int
    keys: int
    blocks: tuple[int, int]
    chunk: int
    has_distances: bool
    pairs: int
    interleaved: bool
    interpret: bool

    @property
    def chunks(self) -> int:
        """Number of chunks of keys."""
        return self.blocks[1] // self.chunk


class Rows(NamedTuple):
    """What scores depend on besides queries and keys.

    Attributes:
      first, last: the first key block that a block of queries visits, and the end of its range; int32 [B I].
      numbers: int32 [4]: dropout key (2), first sequence, first head.
      queries: segments [B, 1, L].
      keys: segments [B, J, N].
      prefix: above 0 for keys that their whole segment attends to, [B, J, N]; or None.
      cos, sin: `Rotation` of the heads of a tile, [1, L, lanes]; or None.
      distances: bias by the query's position minus the key's, [T, heads, L + S]; index S is distance 0; or None.
      key_bias: bias by key, [B, T, heads, J, N]; or None.
    """

    first: Any
    last: Any
    numbers: Any
    queries: Any
    keys: Any
    prefix: Any
    cos: Any
    sin: Any
    distances: Any
    key_bias: Any


class Place(NamedTuple):
    """A program's row, tile of heads, block of queries, and chunk of keys."""

    row: Any
    tile: Any
    queries: Any
    chunk: Any


class Pair(NamedTuple):
    """A block of queries and one of keys; `inner` is the key block's number in the chunk."""

    static: Static
    rows: Rows
    place: Place
    inner: Any

    @property
    def block(self) -> Any:
        """The key block's number in the row."""
        return self.place.chunk * self.static.chunk + self.inner

    @property
    def slots(self) -> Any:
        """The key block's positions in the chunk."""
        return pl.ds(pl.multiple_of(self.inner * self.static.keys, self.static.keys), self.static.keys)

    @property
    def first_key(self) -> Any:
        """The key block's first position in the row."""
        return pl.multiple_of(self.block * self.static.keys, self.static.keys)

    def position(self, axis: int) -> jax.Array:
        """Positions of keys (axis 0) or queries (axis 1), [N, Q]."""
        static = self.static
        first = (self.block * static.keys, self.place.queries * static.queries)[axis]
        return first + jax.lax.broadcasted_iota(jnp.int32, (static.keys, static.queries), axis)

    def visible(self) -> jax.Array:
        """Whether queries see keys, [N, Q]."""
        static, rows = self.static, self.rows
        visible = column(rows.keys[0, pl.ds(self.block, 1), :]) == rows.queries[0]
        if static.causal or static.window:
            distance = self.position(1) - self.position(0)
            near = distance >= 0
            if static.window:
                local = jnp.asarray(in_window(distance, static.window, static.causal, static.window_ahead))
                near = near & local if static.causal else local
            if rows.prefix is not None:
                near |= column(rows.prefix[0, pl.ds(self.block, 1), :]) > 0
            visible &= near
        return visible

    def kept(self, head: int) -> jax.Array:
        """Whether dropout keeps the probabilities of a head, [N, Q]: the bits of `layers.dropout`, by number in the whole batch."""
        static, numbers = self.static, self.rows.numbers
        _, heads, length, keys = static.whole
        number = (numbers[2] + self.place.row) * heads + numbers[3] + self.place.tile * static.heads + head
        first = number * length  # wraps around, as unsigned numbers do
        element = (first + self.position(1)) * keys + self.position(0)
        high, low = (numbers[n].astype(jnp.uint32) for n in range(2))
        bits = mix_bits(element.astype(jnp.uint32), high, low)
        return bits >= jnp.uint32(round(static.rate * 2**32))

    def scores(self, head: int, key_NK: jax.Array, query_QK: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Scores to base 2 of a head without mask, and the slope of their soft cap (1 without one)."""
        static, slope = self.static, jnp.float32(1)
        scores = _dot(key_NK, query_QK, 1, 1)
        if static.cap:
            bent = jnp.tanh(scores * (static.scale / static.cap))
            scores, slope = bent * (static.cap * LOG2_E), 1 - bent * bent
        else:
            scores *= static.scale * LOG2_E
        if static.has_distances:
            scores += self.distance_bias(head) * LOG2_E
        if self.rows.key_bias is not None:
            scores += column(self.rows.key_bias[0, 0, head, pl.ds(self.block, 1), :]) * LOG2_E
        return scores, slope

    @property
    def distances(self) -> Any:
        """The distances of the pair in `Rows.distances`: W from that of the first query and the key after the last one."""
        static = self.static
        first = self.place.queries * static.queries + (static.blocks[1] - 1 - self.block) * static.keys
        return pl.ds(pl.multiple_of(first, 128), static.queries + static.keys)

    def distance_bias(self, head: int) -> jax.Array:
        """The bias by distance, [N, Q]: entry (n, q) is value N + q - n of the pair's distances."""
        static = self.static
        row = self.rows.distances[0, head : head + 1, self.distances]
        eight = _shear(jnp.broadcast_to(row, (8, row.shape[1])))
        rows = jnp.concatenate([_roll(eight, first) for first in range(0, 128, 8)])
        return jnp.concatenate([rows[:, lanes] for lanes in _steps(static)])

    def distance_sums(self, x_NQ: jax.Array) -> jax.Array:
        """Sums along diagonals, [1, W]: the transpose of `distance_bias`."""
        static = self.static
        width, rows = static.queries + static.keys, jnp.float32(0)
        for number, lanes in enumerate(_steps(static)):
            part = x_NQ[128 * number : 128 * (number + 1)]
            before, after = ([jnp.zeros((128, n), part.dtype)] if n else [] for n in (lanes.start, width - lanes.stop))
            rows += jnp.concatenate([*before, part, *after], 1)
        eight = functools.reduce(jnp.add, (_roll(rows[first : first + 8], -first) for first in range(0, 128, 8)))
        return _shear(eight, -1).sum(0, keepdims=True)


def _steps(static: Static) -> list[slice]:
    """For each 128 keys of a block, the distances in its first row; those of the next 128 begin 128 earlier."""
    return [slice(n, n + static.queries) for n in range(static.keys, 0, -128)]


def _roll(x: jax.Array, shift: int) -> jax.Array:
    """Roll by `shift` lanes to the right, or to the left if it is negative."""
    return pltpu.roll(x, shift % x.shape[1], 1) if shift else x


def _shear(x: jax.Array, direction: int = 1) -> jax.Array:
    """Roll row n of eight by n lanes: by each power of two of n, where n has it."""
    row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    for power in (1, 2, 4):
        x = jnp.where(row & power > 0, _roll(x, direction * power), x)
    return x


def forward_kernel(
    static: Static,
    place: Place,
    rows: Rows,
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    log_total: Any,
    mixed: Any,
    highest: Any,
    total: Any,
    turned: Any = None,
) -> None:
    """Compute attention of a block of queries to a chunk of keys: out [Q, heads K], and log2 of the softmax sums [heads, Q].

    Scratch: mixed [heads K, Q], highest and total [heads, Q], and turned, as the keys, if the kernel rotates.
    """
    queries = _queries(static, place, rows, query)
    key = _keys(static, place, rows, key, turned, (place.queries == 0) | (static.chunks > 1))

    @pl.when(place.chunk == 0)
    def start() -> None:
        mixed[...] = jnp.zeros(mixed.shape, mixed.dtype)
        total[...] = jnp.zeros(total.shape, total.dtype)
        highest[...] = jnp.full(highest.shape, _INITIAL_MAX, highest.dtype)

    def add(inner: Any) -> None:
        pair = Pair(static, rows, place, inner)
        keys, values = _block(pair, key), _block(pair, value)
        visible, values_KN = pair.visible(), values.T

        def add_head(head: int) -> None:
            own, shared, row = _lanes(static, head), _lanes(static, head // static.copies), slice(head, head + 1)
            scores, _ = pair.scores(head, keys[:, shared], queries[:, own])
            scores = jnp.where(visible, scores, _MASKED)
            top = jnp.maximum(highest[row], scores.max(0, keepdims=True))
            weights, shrink = jnp.exp2(scores - top), jnp.exp2(highest[row] - top)
            highest[row], total[row] = top, total[row] * shrink + weights.sum(0, keepdims=True)
            if static.rate:
                weights = jnp.where(pair.kept(head), weights, 0.0)
            mixed[own] = mixed[own] * shrink + _dot(values_KN[shared], weights.astype(values.dtype), 1, 0)

        _each_head(static, place, add_head)

    _loop(static, place, rows, add)

    @pl.when(place.chunk == static.chunks - 1)
    def finish() -> None:
        for head in range(static.heads):
            own, row = _lanes(static, head), slice(head, head + 1)
            sums = jnp.where(total[row] > 0.0, total[row], 1.0)
            log_total[0, 0, row] = highest[row] + jnp.log2(sums)
            mixed[own] = mixed[own] * (1.0 / ((1.0 - static.rate) * sums))
        out[0] = mixed[...].T.astype(out.dtype)


def backward_kernel(
    static: Static,
    place: Place,
    rows: Rows,
    query: Any,
    key: Any,
    value: Any,
    outer: Any,
    out: Any,
    log_total: Any,
    query_gradient: Any,
    key_gradient: Any,
    value_gradient: Any,
    distance_gradient: Any,
    bias_gradient: Any,
    for_query: Any,
    for_key: Any,
    for_value: Any,
    turned: Any = None,
) -> None:
    """Compute the gradients of a block of queries and a chunk of keys, with the scores computed again.

    Scratch: for_query [heads K, Q]; for_key and for_value [chunk N, heads / copies K]; turned as in the forward pass.
    """
    first, length = place.queries * static.queries, static.lengths[0]
    queries, outers = _queries(static, place, rows, query), _present(outer[0], first, length)
    key = _keys(static, place, rows, key, turned, place.queries == 0)
    products = outers.astype(jnp.float32) * _present(out[0], first, length).astype(jnp.float32)
    products_KQ = products.T
    for_query[...] = jnp.zeros(for_query.shape, for_query.dtype)

    @pl.when(place.queries == 0)
    def start() -> None:
        for_key[...] = jnp.zeros(for_key.shape, for_key.dtype)
        for_value[...] = jnp.zeros(for_value.shape, for_value.dtype)

    if bias_gradient is not None:

        @pl.when((place.queries == 0) & (place.chunk == 0))
        def start_bias() -> None:
            bias_gradient[...] = jnp.zeros(bias_gradient.shape, bias_gradient.dtype)

    if distance_gradient is not None:

        @pl.when((place.row == 0) & (place.queries == 0) & (place.chunk == 0))
        def start_distances() -> None:
            distance_gradient[...] = jnp.zeros(distance_gradient.shape, distance_gradient.dtype)

    def add(inner: Any) -> None:
        pair = Pair(static, rows, place, inner)
        keys, values = _block(pair, key), _block(pair, value)
        visible, keys_KN = pair.visible(), keys.T

        def add_head(head: int) -> None:
            own, shared, row = _lanes(static, head), _lanes(static, head // static.copies), slice(head, head + 1)
            scores, slope = pair.scores(head, keys[:, shared], queries[:, own])
            # Probabilities are divided by 1 - rate here, and `delta` is multiplied by it, so that nothing else has to be.
            kept_rate = 1.0 - static.rate
            probs = jnp.exp2(jnp.where(visible, scores, _MASKED) - (log_total[0, 0, row] + math.log2(kept_rate)))
            # The softmax's gradient subtracts this sum over keys of probability times its gradient.
            delta = products_KQ[own].sum(0, keepdims=True) * kept_rate
            product, dropped = _dot(values[:, shared], outers[:, own], 1, 1), probs
            if static.rate:
                kept = pair.kept(head)
                product, dropped = jnp.where(kept, product, 0.0), jnp.where(kept, probs, 0.0)
            gradient = probs * (product - delta)
            for_value[pair.slots, shared] += _dot(dropped.astype(outers.dtype), outers[:, own], 1, 0)
            if distance_gradient is not None:
                distance_gradient[0, head : head + 1, pair.distances] += pair.distance_sums(gradient)
            if bias_gradient is not None:
                sums = jnp.broadcast_to(gradient.sum(1, keepdims=True), (static.keys, 128))
                bias_gradient[0, 0, head, pl.ds(pair.block, 1), :] += sums.T[:1]
            gradient = (gradient * slope if static.cap else gradient).astype(queries.dtype)
            for_key[pair.slots, shared] += _dot(gradient, queries[:, own], 1, 0)
            for_query[own] += _dot(keys_KN[shared], gradient, 1, 0)

        _each_head(static, place, add_head)

    _loop(static, place, rows, add)
    to_query = _rotated(static, rows, (for_query[...] * static.scale).T, first, -1)
    query_gradient[0, 0] = to_query.astype(query_gradient.dtype)

    @pl.when(place.queries == static.blocks[0] - 1)
    def finish() -> None:
        value_gradient[0] = for_value[...].astype(value_gradient.dtype)

        def write(inner: Any) -> None:
            pair = Pair(static, rows, place, inner)
            to_key = _rotated(static, rows, for_key[pair.slots, :] * static.scale, pair.first_key, -1)
            key_gradient[0, pair.slots, :] = to_key.astype(key_gradient.dtype)

        _each_block(static, write)


def _loop(static: Static, place: Place, rows: Rows, add: Any) -> None:
    """Call `add` for each block of the chunk that the block of queries visits."""
    if static.blocks[1] == 1:
        add(0)
        return
    number, first_block = place.row * static.blocks[0] + place.queries, place.chunk * static.chunk
    first = jnp.maximum(rows.first[number] - first_block, 0)
    last = jnp.minimum(rows.last[number] - first_block, static.chunk)

    def step(inner: jax.Array, _: None) -> None:
        add(inner)

    jax.lax.fori_loop(first, last, step, None)


def _each_head(static: Static, place: Place, run: Any) -> None:
    """Call `run` for each head that the tile has."""
    for head in range(static.heads):
        if head < static.all_heads % static.heads or static.all_heads % static.heads == 0:
            run(head)
        else:
            pl.when(place.tile * static.heads + head < static.all_heads)(functools.partial(run, head))


def _each_block(static: Static, run: Any) -> None:
    """Call `run` for each block of the chunk."""
    if static.chunk == 1:
        run(0)
    else:
        jax.lax.fori_loop(0, static.chunk, lambda inner, _: run(inner), None)


def _queries(static: Static, place: Place, rows: Rows, query: Any) -> jax.Array:
    """The block of queries, rotated if the kernel rotates."""
    first = pl.multiple_of(place.queries * static.queries, static.queries)
    return _rotated(static, rows, _present(query[0], first, static.lengths[0]), first)


def _keys(static: Static, place: Place, rows: Rows, key: Any, turned: Any, stale: Any) -> Any:
    """The keys of the chunk; if the kernel rotates, `turned`, which is computed where it is `stale`."""
    if not static.pairs:
        return key

    @pl.when(stale)
    def fill() -> None:
        def turn(inner: Any) -> None:
            pair = Pair(static, rows, place, inner)
            turned[0, pair.slots, :] = _rotated(static, rows, key[0, pair.slots, :], pair.first_key)

        _each_block(static, turn)

    return turned


def _rotated(static: Static, rows: Rows, x: jax.Array, first: Any, direction: int = 1) -> jax.Array:
    """Rotate heads [R, heads K] of positions from `first` on, or back; x itself if the kernel does not rotate."""
    if not static.pairs:
        return x
    cos, sin = (table[0, pl.ds(first, len(x)), :] for table in (rows.cos, rows.sin))
    lanes, lane = cos.shape[1], jax.lax.broadcasted_iota(jnp.int32, cos.shape, 1)
    apart, leads = 1, lane & 1 == 0  # the first elements of pairs
    if not static.interleaved:
        apart, heads = static.pairs, range(0, lanes, static.width)
        leads = functools.reduce(jnp.logical_or, ((lane >= n) & (lane < n + apart) for n in heads))
    parts = []
    for start in range(0, x.shape[1], lanes):
        part = x[:, start : start + lanes].astype(jnp.float32)
        others = jnp.where(leads, _roll(part, -apart), _roll(part, apart))
        parts.append(part * cos + others * (direction * sin))
    return jnp.concatenate(parts, 1).astype(x.dtype)


def _block(pair: Pair, x: Any) -> jax.Array:
    """A block of keys or values."""
    return _present(x[0, pair.slots, :], pair.block * pair.static.keys, pair.static.lengths[1])


def _present(x: jax.Array, first: Any, length: int) -> jax.Array:
    """Set positions after the end of the row, whose content is undefined, to 0."""
    if length % x.shape[0] == 0:
        return x
    return jnp.where(first + jax.lax.broadcasted_iota(jnp.int32, x.shape, 0) < length, x, jnp.zeros((), x.dtype))


def _lanes(static: Static, head: int) -> slice:
    return slice(head * static.width, (head + 1) * static.width)


def column(row: jax.Array) -> jax.Array:
    """A row [1, N] as a column [N, 1]."""
    return jnp.broadcast_to(row, (8, row.shape[1])).T[:, :1]


def _dot(x: jax.Array, y: jax.Array, of_x: int, of_y: int) -> jax.Array:
    """The product of two matrices, summed over axis `of_x` of one and `of_y` of the other, in float32."""
    return jax.lax.dot_general(x, y, (((of_x,), (of_y,)), ((), ())), preferred_element_type=jnp.float32)
