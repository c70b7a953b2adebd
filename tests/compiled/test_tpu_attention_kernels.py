"""The TPU kernels of attention, compiled for chips that are not present; needs the extra `plan`."""

from __future__ import annotations

import importlib.util
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from helpers import tiny
from lm_research.models.attention.mask import AttentionMask
from lm_research.models.attention.tpu import tile_heads, tpu_attend
from lm_research.models.rotary import make_rotation
from lm_research.parallel.rules import RULES
from lm_research.planning.compiled import compile_program, topology_mesh
from lm_research.planning.topology import parse_topology

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu"),
]


class Shape(NamedTuple):
    """A model's attention."""

    length: int
    keys: int
    heads: int = 12
    groups: int = 12
    width: int = 64
    causal: bool = False
    window: int = 0
    distances: bool = False
    cap: float = 0.0
    rate: float = 0.1
    rotary: bool = False


SHAPES = {
    "bert": Shape(512, 512),
    "gpt2": Shape(1024, 1024, causal=True),
    "gpt2_xl": Shape(1024, 1024, 25, 25, causal=True),
    "t5 encoder": Shape(512, 512, distances=True),
    "t5 decoder": Shape(114, 114, causal=True, distances=True),
    "t5 cross": Shape(114, 512),
    "modernbert": Shape(1024, 1024, window=128, rate=0.0, rotary=True),
    "llama": Shape(4096, 4096, 32, 8, 128, causal=True, rate=0.0, rotary=True),
    "gemma2": Shape(1024, 1024, 8, 4, 256, causal=True, window=512, cap=50.0, rate=0.0, rotary=True),
    "bloom": Shape(1024, 1024, 16, 16, causal=True, distances=True, rate=0.0),
}
CHIPS = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
PLACES = [(name, "v5e:2x2") for name in SHAPES]
PLACES += [(name, chip) for chip in CHIPS if chip != "v5e:2x2" for name in ("t5 encoder", "llama", "gemma2")]


@pytest.mark.parametrize(("name", "chip"), PLACES)
def test_compiles(name: str, chip: str) -> None:
    """As part of a layer: projections, attention, output, and their gradients, for four rows on each of the slice's devices."""
    shape, topology = SHAPES[name], parse_topology(chip)
    mesh = topology_mesh(tiny.config("bert"), topology)
    rows, width = 4 * mesh.size, shape.heads * shape.width

    def array(*sizes: int, dtype: object = jnp.bfloat16, divided: bool = False) -> jax.ShapeDtypeStruct:
        place = PartitionSpec(RULES["batch"]) if divided else PartitionSpec()
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, place))

    def loss(
        x: jax.Array, y: jax.Array, weights: list[jax.Array], table: jax.Array, segments: list[jax.Array]
    ) -> jax.Array:
        query, key, value = (
            (states.reshape(-1, width) @ weight).reshape(*states.shape[:2], -1, shape.width)
            for states, weight in zip((x, y, y), weights[:3], strict=True)
        )
        mask = AttentionMask(*segments, shape.causal, shape.window, distances_HX=table if shape.distances else None)
        key_ = jax.random.key(0) if shape.rate else None
        rotation = None
        if shape.rotary:  # positions of packed documents, which differ between rows
            frequencies = 10_000.0 ** -np.linspace(0, 1, shape.width // 2, dtype=np.float32)
            rotation = make_rotation(segments[0], frequencies, shape.width, tile_heads(shape.width))
        dropped = (shape.rate, key_)
        out = tpu_attend(query, key, value, mask, shape.width**-0.5, *dropped, shape.cap, rotation=rotation)
        return ((out.reshape(-1, width) @ weights[3]).astype(jnp.float32) ** 2).sum()

    states = [array(rows, n, width, divided=True) for n in (shape.length, shape.keys)]
    inner = [array(width, n * shape.width) for n in (shape.heads, shape.groups, shape.groups, shape.heads)]
    table = array(shape.heads, shape.length + shape.keys - 1, dtype=jnp.float32)
    segments = [array(rows, n, dtype=jnp.int32, divided=True) for n in (shape.length, shape.keys)]
    with jax.set_mesh(mesh):
        _, text = compile_program(jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(*states, inner, table, segments))
    kernels = re.findall(r"tpu_attention_(\w+?)_*(?:\.\d+)? = .* custom-call\(", text)
    assert sorted(kernels) == ["backward", "forward"]
