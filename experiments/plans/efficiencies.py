"""`python -m experiments.plans.efficiencies v5e`: the cycles that the TPU compiler estimates for single operations; prints a table.

They are the source of `lm_research/planning/efficiency.py`. Each operation is compiled for one device of the chip (extra `plan`; no TPU is
needed), and its estimated cycles are compared with the peak of the matrix unit and with the bandwidth of memory.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from lm_research.config import Config
from lm_research.models.activations import gelu
from lm_research.models.layers import random_bits
from lm_research.parallel.hardware import CHIPS
from lm_research.planning.compiled import topology_mesh
from lm_research.planning.topology import parse_topology

WIDE = (16384, 3072)
PRODUCTS = ((8192, 768, 3072), (768, 8192, 3072), (8192, 1024, 4096), (8192, 4096, 1024))


def dropped(x: jax.Array) -> jax.Array:
    """Apply dropout of 0.1 with fixed bits."""
    key = jax.random.wrap_key_data(jnp.array([1, 2], jnp.uint32))
    return jnp.where(random_bits(key, x.shape) >= jnp.uint32(429496729), x * 1.1, 0).astype(x.dtype)


# Name -> function, arguments (shape, type), and the elements that it must read and write.
ELEMENTWISE: dict[str, tuple[Callable[..., Any], tuple[Any, ...], float]] = {
    "addition": (lambda a, b: a + b, ((WIDE, jnp.bfloat16),) * 2, 3 * math.prod(WIDE)),
    "gelu": (gelu, ((WIDE, jnp.bfloat16),), 2 * math.prod(WIDE)),
    "dropout": (dropped, ((WIDE, jnp.bfloat16),), 2 * math.prod(WIDE)),
    "softmax": (lambda a: jax.nn.softmax(a, axis=-1), (((98304, 512), jnp.float32),), 4 * 98304 * 512),
}


def main(argv: list[str]) -> int:
    """Print the tables of the chips."""
    print("| chip | operation | cycles | of the peak of products | elements read or written per cycle |")
    print("|---|---|---|---|---|")
    for name in argv or ["v5e", "v5p", "v6e", "tpu7x"]:
        for line in lines(name):
            print(line, flush=True)
    return 0


def lines(name: str) -> Iterator[str]:
    """Yield a row of the table per operation."""
    chip = CHIPS[name]
    topology = parse_topology(f"{name}:{'2x2' if chip.torus == 2 else '2x2x1'}")
    device = topology_mesh(Config(), topology).devices.flat[0]
    for rows, inner, columns in PRODUCTS:
        shapes = (((rows, inner), jnp.bfloat16), ((inner, columns), jnp.bfloat16))
        found = cycles(jnp.dot, shapes, device)
        fraction = 2.0 * rows * inner * columns / found * chip.clock / chip.device.flops
        yield f"| {name} | [{rows}, {inner}] x [{inner}, {columns}] | {found:,} | {fraction:.2f} | |"
    for label, (function, shapes, elements) in ELEMENTWISE.items():
        found = cycles(function, shapes, device)
        yield f"| {name} | {label} | {found:,} | | {elements / found:.0f} |"


def cycles(function: Callable[..., Any], shapes: tuple[Any, ...], device: Any) -> int:
    """Compile a function and return the sum of the cycles that the compiler estimates for its kernels."""
    placed = [jax.ShapeDtypeStruct(*one, sharding=SingleDeviceSharding(device)) for one in shapes]
    text = jax.jit(function).lower(*placed).compile().as_text()
    return sum(int(number) for number in re.findall(r'"estimated_cycles":"(\d+)"', text or ""))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
