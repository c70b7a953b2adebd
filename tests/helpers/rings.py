"""Run by test_ring.py in a process with eight simulated devices; its arguments are names of cases.

It prints, for each case, how far ring attention (or flash, where no devices share a row's positions) is from whole attention: the largest difference of outputs, and of gradients relative to the largest.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from helpers import tiny
from lm_research.config import MeshConfig
from lm_research.models.architecture import from_flat
from lm_research.models.attention.flash import flash_attend
from lm_research.models.attention.mask import AttentionMask, attention_bias
from lm_research.models.attention.module import reference_attention
from lm_research.models.attention.ring import ring_attend
from lm_research.models.definition import define
from lm_research.models.heads import HeadSpec
from lm_research.models.positions import distance_table, relative_bias
from lm_research.parallel.mesh import make_mesh
from lm_research.parallel.rules import tree_shardings

B, L, H, K, BUCKETS, REACH = 4, 32, 4, 8, 8, 16
# Name -> mesh, causal, window, prefix, relative positions, dropout, cap of scores.
CASES: dict[str, tuple] = {
    "bidirectional": (dict(context=8), False, 0, False, False, 0.0),
    "causal": (dict(data=2, context=4), True, 0, False, False, 0.0),
    "window and dropout": (dict(fsdp=2, context=2, tensor=2), True, 5, False, False, 0.3),
    "prefix": (dict(context=8), True, 0, True, False, 0.0),
    "relative, dropout": (dict(context=4, tensor=2), False, 0, False, True, 0.2),
    "relative, causal": (dict(context=8), True, 0, False, True, 0.0),
    "window to both sides, capped": (dict(context=4, tensor=2), False, 6, False, True, 0.0, 0.7),
    "flash, window and dropout": (dict(data=2, fsdp=2, tensor=2), True, 5, False, False, 0.3),
}


def compare(
    mesh: dict[str, int], causal: bool, window: int, prefix: bool, relative: bool, rate: float, cap: float = 0.0
) -> list[float]:
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(B, L, H, K)), jnp.float32) for _ in range(3))
    table = jnp.asarray(rng.normal(size=(BUCKETS, H)), jnp.float32)
    outer = jnp.asarray(rng.normal(size=(B, L, H, K)), jnp.float32)
    # Packed documents that end anywhere, and padding (0) at the end of some rows.
    segments = jnp.asarray(-np.sort(-rng.integers(0, 4, (B, L)), axis=1))
    prefixes = jnp.asarray(rng.integers(0, 2, (B, L))) if prefix else None
    drop = jax.random.key(3)

    def whole(query: jax.Array, key: jax.Array, value: jax.Array, table: jax.Array) -> jax.Array:
        bias = attention_bias(segments, segments, causal, window, prefixes)
        if relative:
            bias += relative_bias(table, L, L, REACH, bidirectional=not causal)
        return reference_attention(query, key, value, bias, rate, drop, scale=1.0, score_cap=cap)

    def ring(query: jax.Array, key: jax.Array, value: jax.Array, table: jax.Array) -> jax.Array:
        distances = distance_table(table, L, REACH, bidirectional=not causal) if relative else None
        mask = AttentionMask(segments, segments, causal, window, prefix_BS=prefixes, distances_HX=distances)
        if "context" not in mesh:
            return flash_attend(query, key, value, mask, 1.0, rate, drop)
        return ring_attend(query, key, value, mask, rate, drop, cap)

    def results(function: Any) -> list[jax.Array]:
        out, pull = jax.vjp(function, query, key, value, table)
        return [out, *pull(outer)]

    theirs = tiny.jit(lambda: results(whole))()
    with jax.set_mesh(make_mesh(MeshConfig(**mesh))):
        ours = tiny.jit(lambda: results(ring))()
    return [
        float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(b).max().clip(1))
        for a, b in zip(ours, theirs, strict=True)
    ]


DISENTANGLED = dict(positions="disentangled", position_terms=("query", "key"))
PATTERNS = {
    "pattern of an encoder": (
        (dict(attention_norm=False), *(dict(attention="window", window=4), {}) * 2),
        dict(num_layers=5),
    ),
    "tables of layers and global tokens": (
        (dict(positions="relative", own_relative_table=True), dict(attention="window", window=4, global_tokens=True)),
        dict(num_layers=3, relative_buckets=8, relative_max_distance=12),
    ),
    "distances and convolutions": (
        (dict(DISENTANGLED, conv_width=3), dict(DISENTANGLED, position_projections=False), dict(span_conv_width=3)),
        dict(num_layers=3, relative_buckets=8, relative_max_distance=0),
    ),
    "pattern of a decoder": (
        (
            dict(attention="window", window=4, positions="rotary"),
            dict(num_experts=4, experts_per_token=2, positions="alibi"),
            dict(positions="alibi", scaled_alibi=True),
        ),
        dict(num_layers=5, causal=True, mlp_bias=False),
    ),
}


def compare_models(pattern: tuple[dict[str, Any], ...], fields: dict[str, Any]) -> list[float]:
    """The same of a stack with a pattern of layers, whose parameters and positions devices share, against one device."""
    sizes = dict(vocab_size=64, hidden_size=16, num_heads=2, intermediate_size=32, max_length=16, norm="pre")
    arch = from_flat(pattern, **sizes | fields)
    definition = define(arch, HeadSpec("causal_lm" if arch.causal else "none", pooled=False))
    params = tiny.random_params(definition)
    tokens = np.random.default_rng(0).integers(5, 64, (B, 16))
    segments = -np.sort(-np.random.default_rng(1).integers(0, 4, (B, 16)), axis=1)
    outer = np.random.default_rng(2).normal(size=(B, 16, 16)) * (segments > 0)[..., None]
    chosen = np.random.default_rng(3).integers(0, 2, (B, 16)) if arch.has_global_tokens else None

    def results(params: Any) -> list[jax.Array]:
        def run(params):
            return (definition.bind(params).reader(tokens, segments, prefix_BL=chosen) * outer).sum()

        value, gradient = jax.value_and_grad(run)(params)
        return [value / outer.size, *jax.tree.leaves(gradient)]  # the terms of the sum cancel, their rounding does not

    theirs = tiny.jit(results)(params)
    mesh = make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))
    with jax.set_mesh(mesh):
        ours = tiny.jit(results)(jax.device_put(params, tree_shardings(mesh, definition.shapes, definition.axes)))
    return [
        float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(b).max().clip(1))
        for a, b in zip(ours, theirs, strict=True)
    ]


def find(name: str) -> list[float]:
    return compare(*CASES[name]) if name in CASES else compare_models(*PATTERNS[name])


if __name__ == "__main__":
    print(json.dumps({name: find(name) for name in sys.argv[1:]}))
