"""Kernels of small programs, with the bytes that they must move by arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from helpers import tiny
from lm_research.config import replace
from lm_research.models.layers import dropout
from lm_research.parallel.hardware import CHIPS
from lm_research.planning.efficiency import Efficiency, kernel_seconds, padded_flops
from lm_research.planning.fusion import kernels
from lm_research.planning.kernels import Kernel, Product, extrapolate
from lm_research.planning.workload import gradient_kernels

R, D, F = 512, 256, 1024  # multiples of a tile, so that arrays have no padding
X, Y, W = ((shape, jnp.bfloat16) for shape in ((R, D), (R, F), (D, F)))
ROWS, WIDE = 2 * R * D, 2 * R * F  # bytes of [R, D] and [R, F] in bfloat16


def traced(function: Callable[..., object], *shapes: tuple[tuple[int, ...], object]) -> list[Kernel]:
    return kernels(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(*one) for one in shapes)))


def moved(program: list[Kernel]) -> list[float]:
    return [kernel.times * sum(map(abs, kernel.arrays)) for kernel in program]


def test_a_product_takes_what_follows_it() -> None:
    """A product, a bias and an activation: x and w are read, the result is written; the bias is small."""
    program = traced(lambda x, w, b: jax.nn.gelu(x @ w + b), X, W, ((F,), jnp.bfloat16))
    (kernel,) = program
    assert kernel.products == [Product(1, R, D, F, 2)] and kernel.flops == 2 * R * D * F
    assert moved(program) == [ROWS + 2 * D * F + 2 * F + WIDE]


def test_a_reduction_ends_a_kernel() -> None:
    """Softmax: the maximum, the sum and the quotient read x each; exponentials are computed again instead of stored."""
    program = traced(lambda x: jax.nn.softmax(x, axis=-1), ((R, F), jnp.float32))
    large = [sum(size for size in map(abs, kernel.arrays) if size > 8 * R) for kernel in program]
    assert [size for size in large if size] == [4 * R * F, 4 * R * F, 2 * 4 * R * F]


def test_random_bits_move_nothing() -> None:
    """They cost what computing them takes: one number for each element, as functions such as tanh do."""
    program = traced(lambda x: jnp.tanh(dropout(x, 0.1, jax.random.key(0))), X)
    assert sum(moved(program)) == pytest.approx(2 * ROWS, rel=0.01)
    assert sum(kernel.costly for kernel in program) == 2 * R * D


def test_what_several_kernels_need_is_written_once_and_read_by_each() -> None:
    """The product x w is multiplied by v and by u: it is written once and read twice; a negative size is that of an array between two kernels."""
    first, left, right = traced(
        lambda x, w, v, u: ((x @ w) @ v, (x @ w) @ u)[0:2], X, W, *[((F, D), jnp.bfloat16)] * 2
    )[-3:]
    assert -WIDE in first.arrays or -WIDE in left.arrays
    assert -WIDE in right.arrays and ROWS in right.arrays


def test_a_loop_reads_slices_and_writes_stacks() -> None:
    """Each of 4 iterations reads x and a slice of w, and writes x and a row of results; the copy of x into the stack reads it again."""

    def body(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        return (x @ w).astype(x.dtype), x

    program = traced(lambda x, w: jax.lax.scan(body, x, w), X, ((4, D, D), jnp.bfloat16))
    product, copy = (kernel for kernel in program if sum(kernel.arrays))
    assert product.times == copy.times == 4
    assert sum(product.arrays) == ROWS + 2 * D * D + ROWS and sum(copy.arrays) == 2 * ROWS


@pytest.mark.parametrize("is_kept", [True, False])
def test_results_are_copied_into_stacks_unless_checkpoint_keeps_them(is_kept: bool) -> None:
    """Each of 4 iterations reads x and w and writes x w: 3 arrays; the copy reads and writes x w once more. jax.checkpoint marks what it keeps."""

    def body(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = x @ w
        return x, jax.lax.reduce_precision(y, 8, 7) if is_kept else y

    program = traced(lambda x, w: jax.lax.scan(body, x, w), X, ((4, D, D), jnp.bfloat16))
    copies = [4 * 2 * ROWS] * (not is_kept)
    assert [size for size in moved(program) if size] == [4 * (ROWS + 2 * D * D + ROWS), *copies]
    assert all(kernel.is_looped for kernel in program)


def test_an_unrolled_loop_keeps_nothing_in_stacks_for_another() -> None:
    """Two iterations of x <- tanh(x w): each writes its product; the backward pass reads both, computes tanh again and stacks the gradient of w."""

    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w, unroll=2)[0].sum()

    program = traced(jax.grad(loss, argnums=1), X, ((2, D, D), jnp.bfloat16))
    products = [kernel for kernel in program if kernel.products]
    assert [kernel.flops for kernel in products] == [
        2 * R * D * D
    ] * 5  # two forward, three backward: none for x itself
    first, second = (sum(size for size in map(abs, kernel.arrays) if size > 8 * R) for kernel in products[:2])
    assert first == second == ROWS + 2 * D * D + ROWS
    assert [kernel.name for kernel in program if not kernel.products and sum(map(abs, kernel.arrays)) > 8 * R] == [
        "copy"
    ] * 2
    assert not any(kernel.is_looped for kernel in program)


def test_a_value_is_computed_again_where_that_moves_fewer_bytes() -> None:
    """Of x in bfloat16 the centered x in float32 has twice the bytes, so both products read x; nothing else is written but their results."""

    def centered(x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        return (wide - wide.mean(-1, keepdims=True)).astype(x.dtype)

    def both(x: jax.Array, w: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = centered(x)
        return y @ w, y @ v

    program = traced(both, X, *[((D, D), jnp.bfloat16)] * 2)
    mean, *products = (sum(size for size in map(abs, kernel.arrays) if size > 8 * R) for kernel in program)
    assert mean == ROWS and products == [ROWS + 2 * D * D + ROWS] * 2


def test_gathers_read_what_they_return() -> None:
    program = traced(lambda table, ids: table[ids], ((100_000, D), jnp.bfloat16), ((R,), jnp.int32))
    assert sum(moved(program)) == pytest.approx(2 * ROWS, rel=0.05)


def test_sizes_for_other_numbers_of_sequences_follow_from_two() -> None:
    def program(rows: int) -> list[Kernel]:
        return traced(lambda x, w: jax.grad(lambda w: jnp.square(x @ w).sum())(w), ((rows * R, D), jnp.bfloat16), W)

    assert extrapolate(program(2), program(4), (2, 4), 7) == program(7)
    assert extrapolate(program(2), program(4)[1:], (2, 4), 7) is None


def test_devices_of_a_context_axis_share_the_positions() -> None:
    """Of 4 devices each has a quarter of all products; rings compute the scores of the backward pass once more, a seventh of attention."""
    config = replace(tiny.config("gpt2"), train=dict(batch_size=2))
    alone, shared = (
        sum(kernel.times * kernel.flops for kernel in gradient_kernels(config, 2, "gpu", 1, context))
        for context in (1, 4)
    )
    assert alone / 4 <= shared <= 1.2 * alone / 4


@pytest.mark.parametrize(
    ("product", "tile", "padded"),
    [
        (Product(1, 8192, 768, 3072, 2), 128, (8192, 768, 3072)),
        (Product(1, 8192, 48, 3072, 2), 128, (8192, 128, 3072)),  # a shard of 768 on 16 devices
        (Product(1, 8192, 1600, 4800, 2), 256, (8192, 1792, 4800)),  # columns fill registers, since rows fill tiles
        (Product(192, 512, 64, 512, 2), 128, (192 * 512, 128, 512)),  # heads of 64
        (Product(1, 1, 1024, 4096, 2), 128, (8, 1024, 4096)),  # a vector takes a register of 8 rows
    ],
)
def test_products_fill_whole_tiles(product: Product, tile: int, padded: tuple[int, int, int]) -> None:
    rows, inner, columns = padded
    assert padded_flops(product, tile) == 2.0 * rows * inner * columns


def test_a_kernel_takes_the_time_of_its_slowest_unit() -> None:
    chip = CHIPS["v5e"]
    reached = Efficiency(128, ((0, 0.5), (1024, 0.8)), 0.9, elements=4e12, cache=1e6, costly=2.0)
    product, shallow = Product(1, 8192, 8192, 8192, 2), Product(1, 8192, 768, 768, 2)
    cases = [
        (Kernel(1, "matrix", [product], 3 * 8192**2, arrays=[1e6]), 2 * 8192**3 / (0.8 * 197e12)),
        (Kernel(1, "small contraction", [shallow]), 2 * 8192 * 768**2 / (0.5 * 197e12)),
        (
            Kernel(1, "residual", [product], 4 * 8192**2),
            2 * 8192**3 / (0.8 * 197e12),
        ),  # the vector unit works beside the matrix unit,
        (  # but in loops after it
            Kernel(1, "looped", [product], 4 * 8192**2, is_looped=True),
            2 * 8192**3 / (0.8 * 197e12) + 2 * 8192**2 / 4e12,
        ),
        (
            Kernel(1, "many results", [shallow], 8192 * (768 + 768 + 768e3) + 768**2),
            8192 * 768e3 / 4e12 + 8192 * 768 / 4e12,
        ),
        (Kernel(1, "memory", [], 1e6, arrays=[819e6, -2e6]), 821e6 / (0.9 * 819e9)),  # 2 MB do not stay on the chip
        (Kernel(1, "vector", [], 8e9, arrays=[1e6, -1e6]), 8e9 / 4e12),
        (Kernel(1, "costly", [], 1e9, 2e9), (1e9 + 2 * 2e9) / 4e12),
        (Kernel(1, "attention", [product], is_custom=True), 2 * 8192**3 / (0.35 * 197e12)),
    ]
    small = Kernel(1, "8 bits", [Product(1, 8192, 8192, 8192, 1)])  # 393 TOP/s, in float32 models too
    assert kernel_seconds(small, chip, reached, slower=6) == pytest.approx(2 * 8192**3 / (0.8 * 393e12))
    for kernel, seconds in cases:
        assert kernel_seconds(kernel, chip, reached) == pytest.approx(seconds), kernel.name
    assert (
        kernel_seconds(Kernel(1, "vector", [], 8e9), chip, reached, devices=2) == 2 * 8e9 / 4e12
    )  # a device has half of the chip's vector units
