"""Attention that never writes scores to memory: kernels for TPUs (FlashAttention-2, Dao 2023, arXiv:2307.08691).

Queries, keys and values are read where the projections wrote them, [B, L, H K]: a program has a tile of heads whose widths add up to
whole registers of 128 lanes (two heads of 64), a block of queries, and a chunk of keys, over whose blocks it loops with a running
softmax. Query heads that share a key/value head share a tile. One kernel is the forward pass, and one the backward pass, which computes
the scores once more. Blocks that are masked completely (packed documents, padding, causality, windows) are skipped. Dropout draws the
bits of `layers.dropout`, so that kernel and reference drop the same probabilities. The kernels are written in Pallas and compiled by
Mosaic; without a TPU they are interpreted, slowly.

Legend: lm_research/models/__init__.py; here T is tiles of heads, Q queries and N keys of a block, I the number of query blocks, J of key
blocks, and C of chunks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lm_research.common.rounding import ceil_div
from lm_research.models.attention.mask import AttentionMask, near_blocks, visited_blocks
from lm_research.models.attention.tpu_kernels import Place, Rows, Static, backward_kernel, forward_kernel
from lm_research.models.layers import STATISTICS, named
from lm_research.models.rotary import Rotation
from lm_research.parallel.hardware import platform
from lm_research.parallel.rules import first_head, first_row, per_device

# Registers hold 128 lanes. Blocks are multiples of them, of at most LONGEST_BLOCK positions, or SKIPPING_BLOCK where causality or a window
# masks parts of a row. A program has at most LONGEST_CHUNK keys (fewer of heads wider than the registers), which fit in the 16 MiB of
# memory of a v4's core, and MOST_HEADS query heads unless a tile of single ones has more.
LANES, LONGEST_BLOCK, SKIPPING_BLOCK, LONGEST_CHUNK, MOST_HEADS = 128, 512, 256, 2048, 8
VMEM_BYTES = 32 * 2**20
# The largest factors of rotations that kernels apply; the memory has them twice.
ROTATION_BYTES = 2 * 2**20


class Options(NamedTuple):
    """Sizes of blocks and chunks; for tests."""

    longest_block: int = LONGEST_BLOCK
    skipping_block: int = SKIPPING_BLOCK
    longest_chunk: int = LONGEST_CHUNK


class Inputs(NamedTuple):
    """A device's arrays: [B, L, H K], [B, S, G K] twice, and the biases of `AttentionMask`."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    distances: jax.Array | None
    key_bias: jax.Array | None


class Masks(NamedTuple):
    """Segments [B, L] and [B, S], prefixes [B, S] or None, `Rotation` [1 or B, L, lanes] or None, and int32 [4]: dropout key (2), first sequence, first head."""

    queries: jax.Array
    keys: jax.Array
    prefix: jax.Array | None
    cos: jax.Array | None
    sin: jax.Array | None
    numbers: jax.Array


def tpu_attend(
    query_BLHK: jax.Array,
    key_BSGK: jax.Array,
    value_BSGK: jax.Array,
    mask: AttentionMask,
    scale: float | jax.Array = 1.0,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    score_cap: float = 0.0,
    options: Options | None = None,
    rotation: Rotation | None = None,
) -> jax.Array:
    """`module.reference_attention` without scores in memory: equal up to rounding, with zeros for queries that attend to no key.

    On a mesh each device computes its sequences and heads.

    Args:
      query_BLHK: queries.
      key_BSGK: keys.
      value_BSGK: values.
      mask: the mask and biases.
      scale: factor on the scores.
      dropout_rate: dropout on the probabilities.
      dropout_key: PRNG key for dropout; None disables it.
      score_cap: soft cap c of the scores, c tanh(score / c); 0 for none.
      options: sizes of blocks; None for the defaults.
      rotation: applied to queries and keys; of `tile_heads` heads.

    Returns:
      [B, L, H, K] in the type of the values.
    """
    if not isinstance(scale, float):  # it differs between layers
        query_BLHK, scale = query_BLHK * jnp.asarray(scale, query_BLHK.dtype), 1.0
    batch, length, heads, _ = query_BLHK.shape
    rate = 0.0 if dropout_key is None else dropout_rate
    bits = jnp.zeros(2, jnp.uint32) if dropout_key is None else jax.random.key_data(dropout_key).astype(jnp.uint32)
    whole = (batch, heads, length, key_BSGK.shape[1])
    settings: dict[str, Any] = dict(causal=mask.causal, window=mask.window, window_ahead=mask.window_ahead)
    settings |= dict(scale=scale, cap=score_cap, rate=rate, whole=whole)
    key_bias = mask.key_bias_BHS
    if key_bias is not None:
        key_bias = jnp.broadcast_to(key_bias, (batch, *key_bias.shape[1:]))
    factors = (None, None) if rotation is None else (rotation.cos_BLT, rotation.sin_BLT)
    settings |= dict(pairs=rotation.pairs if rotation else 0, interleaved=bool(rotation and rotation.interleaved))
    shared = rotation is not None and len(rotation.cos_BLT) == 1
    run = functools.partial(_on_device, settings, options or Options())
    return per_device(
        run,
        (query_BLHK, key_BSGK, value_BSGK, mask.distances_HX, key_bias),
        (mask.query_segments_BL, mask.key_segments_BS, mask.prefix_BS, *((None, None) if shared else factors)),
        (jax.lax.bitcast_convert_type(bits, jnp.int32), factors if shared else None),
    )


def _on_device(
    settings: dict[str, Any],
    options: Options,
    arrays: tuple[Any, ...],
    rows: Sequence[Any],
    whole: tuple[jax.Array, tuple[jax.Array, jax.Array] | None],
) -> jax.Array:
    """Compute one device's part."""
    *qkv, distances, key_bias = arrays
    (queries, keys, prefix, cos, sin), (bits, shared) = rows, whole
    cos, sin = (cos, sin) if shared is None else shared
    batch, length, heads, width = qkv[0].shape
    single_device = not jax.sharding.get_abstract_mesh().manual_axes
    first = (0, 0) if single_device else (first_row(batch), first_head(heads))
    numbers = jnp.concatenate([bits, jnp.stack([jnp.asarray(n, jnp.int32) for n in first])])
    pad, groups = -width % 16, qkv[1].shape[2]
    if settings["pairs"] and (pad or not _can_rotate(cos, groups, width)):
        rotation = Rotation(cos, sin, settings["pairs"], settings["interleaved"])
        qkv[:2] = (rotation(x) for x in qkv[:2])
        settings, cos, sin = settings | dict(pairs=0), None, None
    qkv = [jnp.pad(x, [(0, 0)] * 3 + [(0, pad)]) for x in qkv] if pad else qkv
    copies = _sharing(heads // groups, groups, width + pad)
    if copies * groups < heads:
        qkv[1:] = (jnp.repeat(x, heads // groups // copies, axis=2) for x in qkv[1:])
    static = _static(settings, options, qkv, copies, distances is not None)
    query, key, value = (x.reshape(*x.shape[:2], -1) for x in qkv)
    inputs = Inputs(query, key, value, distances, key_bias)
    out_BLD = _attend(static, inputs, Masks(queries, keys, prefix, cos, sin, numbers))
    return out_BLD.reshape(batch, length, heads, -1)[..., :width]


def tile_heads(width: int) -> int:
    """The fewest heads that fill whole registers."""
    return LANES // math.gcd(width, LANES)


def _heads_of_tile(groups: int, width: int) -> int:
    """The number of key/value heads of a tile."""
    return min(groups, tile_heads(width))


def _can_rotate(table_BLT: jax.Array, groups: int, width: int) -> bool:
    """Whether the kernels can apply a rotation: its heads are those of a tile, and its factors are not too large."""
    _, length, lanes = table_BLT.shape
    return groups >= tile_heads(width) and 2 * 4 * length * lanes <= ROTATION_BYTES


def _sharing(copies: int, groups: int, width: int) -> int:
    """How many of the `copies` query heads of a key/value head share it in a tile; the others get copies of keys and values."""
    fits = (n for n in range(2, copies + 1) if _heads_of_tile(groups * (copies // n), width) * n <= MOST_HEADS)
    return max((n for n in fits if copies % n == 0), default=1)


def _static(
    settings: dict[str, Any], options: Options, qkv: list[jax.Array], copies: int, has_distances: bool
) -> Static:
    (_, length, heads, width), (_, sources, groups, _) = qkv[0].shape, qkv[1].shape
    window = settings["window"]
    longest = options.skipping_block if settings["causal"] or window else options.longest_block
    if window:
        longest = min(longest, max(LANES, window // LANES * LANES))
    queries, keys = _block(length, longest), _block(sources, longest)
    own = _heads_of_tile(groups, width)
    chunk = min(ceil_div(sources, keys), max(1, options.longest_chunk // keys // ceil_div(own * width, LANES)))
    return Static(
        **settings,
        lengths=(length, sources),
        heads=own * copies,
        copies=copies,
        width=width,
        all_heads=heads,
        queries=queries,
        keys=keys,
        blocks=(ceil_div(length, queries), ceil_div(sources, keys * chunk) * chunk),
        chunk=chunk,
        has_distances=has_distances,
        interpret=platform() == "cpu",
    )


def _block(length: int, longest: int) -> int:
    """The size of the fewest equal blocks of whole registers."""
    return ceil_div(ceil_div(length, ceil_div(length, longest)), LANES) * LANES


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: Static, inputs: Inputs, masks: Masks) -> jax.Array:
    return _run_forward(static, inputs, masks)[0]


def _run_forward(static: Static, inputs: Inputs, masks: Masks) -> tuple[jax.Array, jax.Array]:
    """Attention, and log2 of each query's softmax sum [B, T, heads, L]."""
    call = _Call(static, inputs, masks, ("queries", "chunk"))
    lanes = static.heads * static.width
    totals = (call.batch, call.tiles, static.heads, static.blocks[0] * static.queries)
    return call.run(
        forward_kernel,
        [call.queries(inputs.query), call.keys(inputs.key), call.keys(inputs.value)],
        [call.queries(inputs.query), call.totals(jax.ShapeDtypeStruct(totals, jnp.float32))],
        [(lanes, static.queries), (static.heads, static.queries), (static.heads, static.queries)],
        products=2,
    )


def _forward(static: Static, inputs: Any, masks: Any) -> tuple[jax.Array, tuple[Any, ...]]:
    """Attention, and the residuals of the backward pass; arguments are marked by whether they have gradients."""
    # Biases without gradients, such as ALiBi's, are marked by None.
    learned = tuple(() if x is not None and x.perturbed else None for x in (inputs.distances, inputs.key_bias))
    inputs, masks = jax.tree.map(lambda x: x.value, (inputs, masks))
    out, log_total = _run_forward(static, inputs, masks)
    out, log_total = named(out, "mixed"), named(log_total, STATISTICS)
    return out, (inputs, masks, out, log_total, learned)


def _backward(static: Static, residuals: tuple[Any, ...], gradient: jax.Array) -> tuple[Inputs, None]:
    inputs, masks, out, log_total, learned = residuals
    call = _Call(static, inputs, masks, ("chunk", "queries"))
    rows, lanes = static.chunk * static.keys, static.heads * static.width
    kind = inputs.query.dtype if static.chunks == 1 else jnp.float32
    by_chunk = jax.ShapeDtypeStruct((static.chunks, *inputs.query.shape), kind)
    biases = [None if flag is None else x for x, flag in zip(call.rows[-2:], learned, strict=True)]
    query, key, value, distances, key_bias = call.run(
        backward_kernel,
        [call.queries(inputs.query), call.keys(inputs.key), call.keys(inputs.value), call.queries(gradient)]
        + [call.queries(out), call.totals(log_total)],
        [call.by_chunk(by_chunk), call.keys(inputs.key), call.keys(inputs.value)]
        + [call.of_tile(biases[0]), call.of_row_and_tile(biases[1])],
        [(lanes, static.queries), *[(rows, lanes // static.copies)] * 2],
        products=5,
    )
    query = query[0] if static.chunks == 1 else query.sum(0).astype(inputs.query.dtype)
    if distances is not None:
        distances = _distance_rows(static, inputs.distances, distances)
    if key_bias is not None:
        heads, sources = inputs.key_bias.shape[1:]
        key_bias = key_bias.reshape(call.batch, -1, static.blocks[1] * static.keys)[:, :heads, :sources]
    return Inputs(query, key, value, distances, key_bias), None


_attend.defvjp(_forward, _backward, symbolic_zeros=True)


def _distance_table(static: Static, distances_HX: jax.Array, tiles: int) -> jax.Array:
    """`Rows.distances` of `AttentionMask.distances_HX`: reversed, with zeros around."""
    (length, sources), (queries, keys) = static.lengths, (static.queries, static.keys)
    left, right = static.blocks[1] * keys - sources + 1, static.blocks[0] * queries - length
    padded = jnp.pad(
        distances_HX[:, ::-1].astype(jnp.float32),
        [(0, tiles * static.heads - len(distances_HX)), (left, right)],
    )
    return padded.reshape(tiles, static.heads, -1)


def _distance_rows(static: Static, distances_HX: jax.Array, gradient: jax.Array) -> jax.Array:
    """The transpose of `_distance_table`."""
    (pull,) = jax.linear_transpose(lambda x: _distance_table(static, x, len(gradient)), distances_HX)(gradient)
    return pull


class _Call:
    """The grid of a kernel, and each program's part of the arrays."""

    def __init__(self, static: Static, inputs: Inputs, masks: Masks, axes: tuple[str, str]) -> None:
        # What depends on the row is read once for all tiles, unless the gradient of a tile's distances is summed over rows.
        self.static, self.axes = static, (*(("tile", "row") if static.has_distances else ("row", "tile")), *axes)
        self.batch = inputs.query.shape[0]
        self.tiles = ceil_div(inputs.query.shape[2], static.heads * static.width)
        sizes, spans = (static.queries, static.keys), (static.causal, static.window, static.window_ahead)
        self.near_IJ = near_blocks(static.blocks, sizes, *spans, masks.prefix is not None)
        self.rows = self._rows(inputs, masks)
        self.grid = tuple(self._size(axis) for axis in self.axes)

    def _size(self, axis: str) -> int:
        static = self.static
        return dict(tile=self.tiles, row=self.batch, queries=static.blocks[0], chunk=static.chunks)[axis]

    def _spec(self, shape: tuple[int | None, ...], index: Callable[[Place], tuple[Any, ...]]) -> pl.BlockSpec:
        def place(*ids: Any) -> tuple[Any, ...]:
            return index(Place(**dict(zip(self.axes, ids[: len(self.axes)], strict=True))))

        return pl.BlockSpec(shape, place)

    def queries(self, x: Any) -> tuple[Any, pl.BlockSpec]:
        """Spec of an array [B, L, H K] of which a program has its block of queries and its tile."""
        shape = (1, self.static.queries, self.static.heads * self.static.width)
        return x, self._spec(shape, lambda at: (at.row, at.queries, at.tile))

    def by_chunk(self, x: Any) -> tuple[Any, pl.BlockSpec]:
        """Spec of an array [C, B, L, H K]."""
        shape = (1, 1, self.static.queries, self.static.heads * self.static.width)
        return x, self._spec(shape, lambda at: (at.chunk, at.row, at.queries, at.tile))

    def keys(self, x: Any) -> tuple[Any, pl.BlockSpec]:
        """Spec of an array [B, S, G K] of which a program has its chunk of keys and its tile."""
        static = self.static
        shape = (1, static.chunk * static.keys, static.heads // static.copies * static.width)
        return x, self._spec(shape, lambda at: (at.row, at.chunk, at.tile))

    def totals(self, x: Any) -> tuple[Any, pl.BlockSpec]:
        """Spec of an array [B, T, heads, L]."""
        shape = (1, 1, self.static.heads, self.static.queries)
        return x, self._spec(shape, lambda at: (at.row, at.tile, 0, at.queries))

    def of_row(self, x: Any) -> tuple[Any, pl.BlockSpec | None]:
        """Spec of an array [B, ?, ?] of which a program has its row; or None."""
        return x, None if x is None else self._spec((1, *x.shape[1:]), lambda at: (at.row, 0, 0))

    def of_all(self, x: Any) -> tuple[Any, pl.BlockSpec | None]:
        """Spec of an array [1, ?, ?] that all programs have; or None."""
        return x, None if x is None else self._spec((1, *x.shape[1:]), lambda at: (0, 0, 0))

    def of_tile(self, x: Any) -> tuple[Any, pl.BlockSpec | None]:
        """Spec of an array [T, ?, ?] of which a program has its tile; or None."""
        return x, None if x is None else self._spec((1, *x.shape[1:]), lambda at: (at.tile, 0, 0))

    def of_row_and_tile(self, x: Any) -> tuple[Any, pl.BlockSpec | None]:
        """Spec of an array [B, T, ?, ?, ?]; or None."""
        return x, None if x is None else self._spec((1, 1, *x.shape[2:]), lambda at: (at.row, at.tile, 0, 0, 0))

    def _rows(self, inputs: Inputs, masks: Masks) -> Rows:
        static = self.static
        (count_I, count_J), sources = static.blocks, static.lengths[1]
        pad_L, pad_S = count_I * static.queries - static.lengths[0], count_J * static.keys - sources

        def pad(x: jax.Array, amount: int, value: int) -> jax.Array:
            return jnp.pad(x.astype(jnp.int32), [(0, 0), (0, amount)], constant_values=value)

        queries, keys = pad(masks.queries, pad_L, -1), pad(masks.keys, pad_S, -2)
        bounds = visited_blocks(
            self.near_IJ, queries.reshape(-1, count_I, static.queries), keys.reshape(-1, count_J, static.keys)
        )
        by_block = (self.batch, count_J, static.keys)
        prefix = None if masks.prefix is None else pad(masks.prefix, pad_S, 0).reshape(by_block)
        rest = max(count_I * static.queries, count_J * static.keys) - static.lengths[0]
        cos, sin = (x if x is None else jnp.pad(x, [(0, 0), (0, rest), (0, 0)]) for x in (masks.cos, masks.sin))
        distances = inputs.distances
        if distances is not None:
            distances = _distance_table(static, distances, self.tiles)
        key_bias = inputs.key_bias
        if key_bias is not None:
            more = self.tiles * static.heads - key_bias.shape[1]
            key_bias = jnp.pad(key_bias.astype(jnp.float32), [(0, 0), (0, more), (0, pad_S)])
            key_bias = key_bias.reshape(self.batch, self.tiles, static.heads, count_J, static.keys)
        return Rows(
            bounds[0].reshape(-1),
            bounds[1].reshape(-1),
            masks.numbers,
            queries[:, None],
            keys.reshape(by_block),
            prefix,
            cos,
            sin,
            distances,
            key_bias,
        )

    def run(
        self,
        kernel: Callable[..., None],
        inputs: list[tuple[Any, pl.BlockSpec]],
        outputs: list[tuple[Any, Any]],
        scratch: list[tuple[int, ...]],
        products: int,
    ) -> Any:
        """Call a kernel that computes `products` products of the size of the scores; returns arrays of the shapes in `outputs`."""
        rows, static = self.rows, self.static
        segments = self._spec((1, 1, static.queries), lambda at: (at.row, 0, at.queries))
        of_rows = [(rows.queries, segments), self.of_row(rows.keys), self.of_row(rows.prefix)]
        shared = rows.cos is not None and len(rows.cos) == 1
        of_rows += [self.of_all(x) if shared else self.of_row(x) for x in (rows.cos, rows.sin)]
        of_rows += [self.of_tile(rows.distances), self.of_row_and_tile(rows.key_bias)]
        arrays, in_specs = zip(*of_rows, *inputs, strict=True)
        shapes, out_specs = zip(*outputs, strict=True)
        results = tuple(None if x is None else jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes)

        def body(*refs: Any) -> None:
            place = Place(**{name: pl.program_id(axis) for axis, name in enumerate(self.axes)})
            kernel(static, place, Rows(*refs[: len(rows)]), *refs[len(rows) :])

        memory = [pltpu.VMEM(x, jnp.float32) for x in scratch]
        if static.pairs:  # the rotated keys
            lanes = static.heads // static.copies * static.width
            memory.append(pltpu.VMEM((1, static.chunk * static.keys, lanes), inputs[1][0].dtype))
        # The table's gradient is summed over rows, and keys' gradients over blocks of queries.
        semantics: dict[str, Any] = dict(tile="parallel", row="arbitrary" if static.has_distances else "parallel")
        return pl.pallas_call(
            body,
            out_shape=results,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=3,
                grid=self.grid,
                in_specs=in_specs,
                out_specs=out_specs,
                scratch_shapes=memory,
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=tuple(semantics.get(axis, "arbitrary") for axis in self.axes),
                vmem_limit_bytes=VMEM_BYTES,
            ),
            cost_estimate=self._cost(arrays, results, products),
            interpret=static.interpret,
            name="tpu_attention_" + kernel.__name__.removesuffix("_kernel"),
        )(rows.first, rows.last, rows.numbers, *arrays)

    def _cost(self, arrays: Any, results: Any, products: int) -> pl.CostEstimate:
        """Costs without masks by segment: operations of matrix products, exponentials of scores, and bytes that are read and written."""
        static = self.static
        pairs = int(self.near_IJ.sum()) * static.queries * static.keys
        scores = self.batch * static.all_heads * pairs
        moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves((arrays, results)))
        return pl.CostEstimate(
            flops=2 * products * scores * static.width,
            transcendentals=scores * (2 if static.cap else 1),
            bytes_accessed=moved,
        )
