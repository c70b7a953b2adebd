"""`python -m experiments.benchmarks.products.run`: matrix products of a layer on this machine, in bfloat16 and float32, in three orders.

A dense layer needs a @ b forward, and a.T @ b and a @ b.T backward. Each of these is timed as it is, behind a barrier, and from a copy that
`cpu_products.transposed` lays out in memory as its own matrix; `f32(...)` keeps the sums in float32 and rounds them afterwards. Rounds alternate between all of them, so that other work on the machine slows each
alike. The table has GFLOP per second of processor time, of all threads together, which other work disturbs less than seconds: the best and
the median round; and whether the compiled program multiplies numbers of this type, or converts them to float32 first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lm_research.models.cpu_products import transposed

# Rows of a batch, width, and feed-forward width of BERT-base, and of a small model.
SHAPES = {"base": (2048, 768, 3072), "small": (2048, 256, 1024)}
DTYPES = ("bfloat16", "float32")


def products() -> dict[str, Callable[[jax.Array, jax.Array], jax.Array]]:
    """The products by name; their arguments are [m, k], [k, n], with the side that the name transposes given transposed."""

    def f32(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(a.dtype)

    def barrier(x: jax.Array) -> jax.Array:
        return jax.lax.optimization_barrier(x.T)

    return {
        "a @ b": lambda a, b: a @ b,
        "a.T @ b": lambda a, b: a.T @ b,
        "a @ b.T": lambda a, b: a @ b.T,
        "barrier(a.T) @ b": lambda a, b: barrier(a) @ b,
        "a @ barrier(b.T)": lambda a, b: a @ barrier(b),
        "copy(a.T) @ b": lambda a, b: transposed(a) @ b,
        "a @ copy(b.T)": lambda a, b: a @ transposed(b),
        "f32(a @ b)": f32,
        "f32(a.T @ b)": lambda a, b: f32(a.T, b),
        "f32(a @ b.T)": lambda a, b: f32(a, b.T),
        "f32(copy(a.T) @ b)": lambda a, b: f32(transposed(a), b),
        "f32(a @ copy(b.T))": lambda a, b: f32(a, transposed(b)),
    }


def seconds_of(function: Callable[[], jax.Array], repeats: int) -> float:
    """Time a number of calls; return the processor seconds of one."""
    begin = time.process_time()
    for _ in range(repeats):
        function().block_until_ready()
    return (time.process_time() - begin) / repeats


def make_case(name: str, dtype: str, shape: tuple[int, int, int]) -> tuple[Callable[[], jax.Array], bool]:
    """Compile a product; return a function that computes it once, and whether it multiplies numbers of the type itself."""
    m, k, n = shape
    left = (k, m) if "a.T" in name else (m, k)
    right = (n, k) if "b.T" in name else (k, n)
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, size).astype(dtype) for key, size in zip(keys, (left, right), strict=True))
    compiled = jax.jit(products()[name]).lower(a, b).compile()
    compiled(a, b).block_until_ready()
    found = [computation for computation in compiled.as_text().split("\n}\n") if " dot(" in computation]
    # A kernel of its own that reads bfloat16; what stays in the main computation is converted where it runs.
    direct = not any("ENTRY" in computation or "= f32[" in _parameters(computation) for computation in found)
    return lambda: compiled(a, b), dtype == "float32" or direct


def _parameters(computation: str) -> str:
    """The lines of a computation's parameters."""
    return "\n".join(line for line in computation.splitlines() if " parameter(" in line)


def cell(seconds: list[float], shape: tuple[int, int, int], direct: bool) -> str:
    """Format the rates of a product."""
    work = 2 * shape[0] * shape[1] * shape[2] / 1e9
    found = f"{work / min(seconds):.0f}, {work / statistics.median(seconds):.0f}"
    return found if direct else f"{found} (as float32)"


def flags_of_processor() -> str:
    """The flags of the processor that matter for 16-bit products, as far as Linux tells."""
    try:
        with open("/proc/cpuinfo") as file:
            found = set(next((line for line in file if line.startswith("flags")), "").split())
    except OSError:
        return "unknown"
    return " ".join(name for name in ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16") if name in found)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="which of " + ", ".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=15, help="rounds over all products")
    parser.add_argument("--repeats", type=int, default=3, help="calls of one product in a round")
    args = parser.parse_args()
    print(f"jax {jax.__version__}, {os.cpu_count()} processors: {flags_of_processor()}")
    for label in args.shapes.split(","):
        shape = SHAPES[label]
        cases = {(name, dtype): make_case(name, dtype, shape) for name in products() for dtype in DTYPES}
        times: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
        for _ in range(args.rounds):
            for case, (function, _) in cases.items():
                times[case].append(seconds_of(function, args.repeats))
        print(f"\n{label}: {shape[0]} x {shape[1]} x {shape[2]}; load {os.getloadavg()[0]:.1f}")
        print("| product | " + " | ".join(f"{dtype}: best, median" for dtype in DTYPES) + " |\n|---|---|---|")
        for name in products():
            cells = [cell(times[name, dtype], shape, cases[name, dtype][1]) for dtype in DTYPES]
            print(f"| `{name}` | " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
