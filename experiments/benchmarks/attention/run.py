"""`python -m experiments.benchmarks.attention.run`: attention with its scores in memory, in flash's kernels, and in cuDNN's.

Times the forward pass, and forward and backward together, in bfloat16 on one GPU; README.md next to this file has the question and the results. With
`--tiles` it tries the tile sizes of flash's kernels instead, one kernel at a time.

Legend: B batch, L length, H heads, K head width.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.models.attention.flash import Tile, Tiles, flash_attend
from lm_research.models.attention.mask import AttentionMask, attention_bias
from lm_research.models.attention.module import reference_attention

ROUNDS, SECONDS = 5, 0.1


@dataclasses.dataclass(frozen=True)
class Shape:
    """One line of the table: `documents` are packed in a row, and `rate` is dropout's."""

    batch: int
    length: int
    heads: int
    width: int = 64
    causal: bool = True
    documents: int = 1
    rate: float = 0.0

    def __str__(self) -> str:
        kind = "causal" if self.causal else "both ways"
        packed = f", {self.documents} documents" if self.documents > 1 else ""
        dropped = f", dropout {self.rate:g}" if self.rate else ""
        return f"{self.batch} x {self.length}, {self.heads} heads of {self.width}, {kind}{packed}{dropped}"

    @property
    def flops(self) -> float:
        """Return the FLOPs of the two products of the forward pass; causal rows count half."""
        return 4.0 * self.batch * self.heads * self.length**2 * self.width * (0.5 if self.causal else 1.0)


SHAPES = (
    Shape(256, 128, 12, causal=False),
    Shape(128, 256, 12, causal=False),
    Shape(64, 512, 12, causal=False),
    Shape(64, 512, 12, causal=False, rate=0.1),
    Shape(64, 512, 12, causal=False, documents=4),
    Shape(16, 1024, 12),
    Shape(16, 1024, 12, rate=0.1),
    Shape(16, 1024, 12, documents=4),
    Shape(4, 4096, 16, 128),
)
Ways = dict[str, Callable[..., jax.Array]]


def make_inputs(shape: Shape) -> tuple[list[jax.Array], jax.Array]:
    """Make queries, keys, values and an outer gradient [B, L, H, K] in bfloat16, and segments [B, L]."""
    rng = np.random.default_rng(0)
    size = (shape.batch, shape.length, shape.heads, shape.width)
    arrays = [jnp.asarray(rng.standard_normal(size, np.float32), jnp.bfloat16) for _ in range(4)]
    segments = np.sort(rng.integers(1, shape.documents + 1, size[:2]), axis=1)
    return arrays, jnp.asarray(segments, jnp.int32)


def make_ways(shape: Shape, segments: jax.Array, tiles: Tiles | None = None) -> Ways:
    """Return name -> function of queries, keys and values, with cuDNN where it supports the case."""
    scale, key = shape.width**-0.5, jax.random.key(0)

    def plain(*qkv: jax.Array) -> jax.Array:
        return reference_attention(*qkv, attention_bias(segments, segments, shape.causal), shape.rate, key, scale)

    def flash(*qkv: jax.Array) -> jax.Array:
        return flash_attend(*qkv, AttentionMask(segments, segments, shape.causal), scale, shape.rate, key, tiles)

    def cudnn(*qkv: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(*qkv, scale=scale, is_causal=shape.causal, implementation="cudnn")

    able = shape.documents == 1 and not shape.rate
    return {"plain": plain, "flash": flash} | ({"cudnn": cudnn} if able else {})


def backward(way: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    """Return a function that computes output and gradients for an outer gradient."""

    def run(outer: jax.Array, *qkv: jax.Array) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(way, *qkv)
        return (out, *pull(outer))

    return run


def seconds(function: Callable, *arguments: jax.Array) -> tuple[float, float]:
    """Time one call: return the fastest and slowest mean of ROUNDS rounds, each about SECONDS long."""
    compiled = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    start = time.perf_counter()
    jax.block_until_ready([compiled(*arguments) for _ in range(3)])
    calls = max(3, min(1000, round(SECONDS / ((time.perf_counter() - start) / 3))))
    means = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(calls):
            out = compiled(*arguments)
        jax.block_until_ready(out)
        means.append((time.perf_counter() - start) / calls)
    return min(means), max(means)


def lines(shapes: tuple[Shape, ...]) -> Iterator[str]:
    """Yield the table in Markdown."""
    yield "| rows | way | forward, ms | TFLOP/s | forward and backward, ms | TFLOP/s | error |"
    yield "|---|---|---|---|---|---|---|"
    for shape in shapes:
        (*qkv, outer), segments = make_inputs(shape)
        exact = None
        for name, way in make_ways(shape, segments).items():
            try:
                ahead, both = seconds(way, *qkv), seconds(backward(way), outer, *qkv)
                results = [np.asarray(x, np.float32) for x in jax.jit(backward(way))(outer, *qkv)]
            except Exception as error:
                yield f"| {shape} | {name} | {type(error).__name__}: {str(error).splitlines()[0][:160]} |"
                continue
            exact = exact or results
            pairs = zip(results, exact, strict=True)
            error = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
            cells = (
                f"{1e3 * low:.3f} to {1e3 * high:.3f} | {flops / low / 1e12:.0f}"
                for (low, high), flops in ((ahead, shape.flops), (both, 3.5 * shape.flops))
            )
            yield f"| {shape} | {name} | {' | '.join(cells)} | {error:.1e} |"


def tile_lines(shapes: tuple[Shape, ...]) -> Iterator[str]:
    """Yield the time of flash with each tile of one kernel, the others unchanged."""
    yield "| rows | kernel | tile | forward, ms | forward and backward, ms |"
    yield "|---|---|---|---|---|"
    blocks = ((64, 64), (128, 64), (64, 128), (128, 128))
    choices = [Tile(*block, warps, stages) for block in blocks for warps in (4, 8) for stages in (2, 3)]
    for shape in shapes:
        (*qkv, outer), segments = make_inputs(shape)
        for kernel in Tiles._fields:
            for tile in choices:
                way = make_ways(shape, segments, Tiles()._replace(**{kernel: tile}))["flash"]
                try:
                    ahead = seconds(way, *qkv)[0] if kernel == "forward" else float("nan")
                    both = seconds(backward(way), outer, *qkv)[0] if kernel != "forward" else float("nan")
                except Exception as error:
                    yield f"| {shape} | {kernel} | {tuple(tile)} | {str(error).splitlines()[0][:80]} |"
                    continue
                yield f"| {shape} | {kernel} | {tuple(tile)} | {1e3 * ahead:.3f} | {1e3 * both:.3f} |"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.attention.run", description=__doc__)
    parser.add_argument("--tiles", action="store_true", help="try ways to cut flash's kernels")
    parser.add_argument("--shapes", default="", help="numbers of the table's shapes, from 0, with commas between")
    options = parser.parse_args(argv)
    if jax.default_backend() != "gpu":
        print("This benchmark needs a GPU: the kernels are interpreted elsewhere.", file=sys.stderr)
        return 2
    chosen = tuple(SHAPES[int(number)] for number in options.shapes.split(",")) if options.shapes else SHAPES
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    for line in (tile_lines if options.tiles else lines)(chosen):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
