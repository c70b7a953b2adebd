"""Flash's kernels, interpreted, against plain attention: same values, same gradients, same dropout."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from helpers import tiny
from lm_research.config import ModelConfig
from lm_research.models.attention import flash, module
from lm_research.models.attention.flash import flash_attend
from lm_research.models.attention.flash_kernels import Tile, Tiles
from lm_research.models.attention.mask import AttentionMask, attention_bias
from lm_research.models.attention.module import reference_attention
from lm_research.models.families import define_model

# Blocks of several sizes, so that rows are cut into several of each kind.
TILES = Tiles(Tile(32, 16, 4, 2), Tile(16, 32, 4, 2), Tile(16, 16, 4, 2))


def problem(length: int, keys: int, width: int, seed: int = 0) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """Queries, keys, values and an outer gradient; segments [B, L] and [B, S], three documents and padding."""
    rng = np.random.default_rng(seed)
    sizes = [(2, n, 2, width) for n in (length, keys, keys, length)]
    segments = np.sort(rng.integers(1, 4, (2, keys)), axis=1)
    segments[0, -keys // 8 :] = 0
    of_queries = segments if length == keys else np.sort(rng.integers(1, 4, (2, length)), axis=1)
    return [jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes], of_queries, segments


def results(function: Any, arrays: list[jax.Array]) -> list[np.ndarray]:
    """Output and gradients with respect to queries, keys and values."""
    *qkv, outer = arrays

    def run(outer: jax.Array, *qkv: jax.Array) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(function, *qkv)
        return (out, *pull(outer))

    return [np.asarray(x) for x in tiny.jit(run)(outer, *qkv)]


@pytest.mark.parametrize(
    ("length", "keys", "width", "causal", "window", "prefix", "rate"),
    [
        (48, 48, 16, False, 0, False, 0.0),
        (64, 64, 16, True, 0, False, 0.0),
        (96, 96, 16, True, 7, False, 0.2),
        (96, 96, 16, False, 7, False, 0.0),
        (80, 80, 16, True, 0, True, 0.1),
        (40, 72, 24, False, 0, False, 0.1),  # another stack's keys; lengths and a width that are not powers of two
    ],
    ids=["bidirectional", "causal", "window, dropout", "window to both sides", "prefix, dropout", "cross, dropout"],
)
def test_equals_plain_attention(
    length: int, keys: int, width: int, causal: bool, window: int, prefix: bool, rate: float
) -> None:
    arrays, query_segments, key_segments = problem(length, keys, width)
    prefix_BS = np.random.default_rng(1).integers(0, 2, (2, keys)) if prefix else None
    drop = jax.random.key(3)

    def plain(*qkv: jax.Array) -> jax.Array:
        bias = attention_bias(query_segments, key_segments, causal, window, prefix_BS)
        return reference_attention(*qkv, bias, rate, drop, 0.3)

    def fast(*qkv: jax.Array) -> jax.Array:
        mask = AttentionMask(jnp.asarray(query_segments), jnp.asarray(key_segments), causal, window, prefix_BS)
        return flash_attend(*qkv, mask, 0.3, rate, drop, TILES)

    for got, expected in zip(results(fast, arrays), results(plain, arrays), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_query_that_sees_no_key_gets_zeros_and_changes_nothing() -> None:
    arrays, segments, _ = problem(32, 32, 16)
    mask = AttentionMask(jnp.asarray(np.where(segments == 2, 9, segments)), jnp.asarray(segments))
    out, *gradients = results(lambda *qkv: flash_attend(*qkv, mask, tiles=TILES), arrays)
    assert (out[segments == 2] == 0).all() and (gradients[0][segments == 2] == 0).all()
    assert (gradients[1][segments == 2] == 0).all() and (gradients[2][segments == 2] == 0).all()
    assert all(np.isfinite(x).all() for x in (out, *gradients)) and np.abs(out).max() > 0.1


def test_documents_of_a_row_do_not_see_each_other() -> None:
    """Not even by a NaN, which anything that is multiplied by 0 and added would spread."""
    arrays, segments, _ = problem(64, 64, 16)
    mask = AttentionMask(jnp.asarray(segments), jnp.asarray(segments), causal=True)
    before = results(lambda *qkv: flash_attend(*qkv, mask, tiles=TILES), arrays)[0]
    changed = arrays[1].at[np.nonzero(segments == 1)].set(1e6)
    after = results(lambda *qkv: flash_attend(*qkv, mask, tiles=TILES), [arrays[0], changed, *arrays[2:]])[0]
    np.testing.assert_array_equal(before[segments != 1], after[segments != 1])


@pytest.mark.parametrize("axis", ["over keys", "over queries"])
def test_blocks_that_see_nothing_of_each_other_are_not_visited(axis: str) -> None:
    """Two documents of 32 tokens in blocks of 16: each block meets two of four; if causal, only the first one."""
    segments = jnp.asarray(np.repeat([[1, 2]], 32, axis=1))
    by_keys = axis == "over queries"
    x = jnp.zeros((1, 64, 1, 16))
    for causal, expected in (
        (False, ([0, 0, 2, 2], [2, 2, 4, 4])),
        (True, ([0, 1, 2, 3], [2, 2, 4, 4]) if by_keys else ([0, 0, 2, 2], [1, 2, 3, 4])),
    ):
        static = flash.Static(causal, 0, 1.0, 0.0, (1, 1, 64, 64), TILES, True)
        grid = flash._Grid(static, Tile(16, 16, 4, 2), x, x, by_keys)
        first, last = grid.bounds(flash.Masks(segments, segments, None, jnp.zeros(4, jnp.int32)))
        assert (first.tolist(), last.tolist()) == ([expected[0]], [expected[1]])


ON_GPUS, ON_TPUS = ("bert", "gpt2", "t5", "bart", "llama"), ("t5", "gemma2", "bloom", "umt5", "modernbert")


@pytest.mark.parametrize(
    ("family", "device"),
    [
        *((family, "gpu") for family in ON_GPUS),
        ("t5", "tpu"),
        *(pytest.param(family, "tpu", marks=pytest.mark.slow) for family in ON_TPUS[1:]),
    ],
)
def test_models_are_the_same_with_it(family: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, whose bits are the same; GPU kernels are without relative positions, so T5 uses them only to attend to the encoder."""
    monkeypatch.setattr(module, "platform", lambda: device)
    section = ModelConfig(
        family=family,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        max_length=16,
        attention_dropout_rate=0.2,
        dropout_rate=0.1,
    )
    names = ("xla", "flash")
    definitions = [define_model(dataclasses.replace(section, attention_backend=name), tiny.VOCAB) for name in names]
    params = tiny.random_params(definitions[0])
    tokens = np.random.default_rng(0).integers(5, tiny.VOCAB, (2, 16))
    segments = np.array([[1] * 6 + [2] * 8 + [0] * 2, [1] * 16])
    outer = np.random.default_rng(1).normal(size=(2, 16, 16)).astype(np.float32) * (segments > 0)[..., None]

    def value(params: Any, definition: Any) -> jax.Array:
        model, key = definition.bind(params), jax.random.key(5)
        memory = (
            model.encode(tokens, segments, dropout_key=key)[1] if definition.arch.kind == "encoder-decoder" else None
        )
        stack = model.decoder if definition.arch.causal else model.encoder
        return (stack(tokens, segments, dropout_key=key, memory=memory) * outer).sum()

    pairs = [tiny.jit(jax.value_and_grad(lambda p, d=definition: value(p, d)))(params) for definition in definitions]
    (plain, gradient), (fast, fast_gradient) = pairs
    assert float(fast) == pytest.approx(float(plain), rel=1e-5)
    for (path, expected), got in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(fast_gradient), strict=True
    ):
        np.testing.assert_allclose(
            got, expected, rtol=1e-3, atol=1e-5 + 1e-4 * np.abs(expected).max(), err_msg=str(path)
        )


@pytest.mark.parametrize(("causal", "window", "prefix", "rate"), [(False, 0, False, 0.0), (True, 64, True, 0.1)])
def test_lowers_for_a_gpu(causal: bool, window: int, prefix: bool, rate: float) -> None:
    """Forward pass and both halves of the backward pass become one kernel each, on a mesh of GPUs that this machine does not have."""
    device = AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)
    x, segments = jax.ShapeDtypeStruct((2, 256, 2, 64), jnp.bfloat16), jax.ShapeDtypeStruct((2, 256), jnp.int32)

    def total(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
        mask = AttentionMask(segments, segments, causal, window, segments if prefix else None)
        return flash_attend(query, key, value, mask, 0.125, rate, jax.random.key(0)).astype(jnp.float32).sum()

    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(jax.grad(total, (0, 1, 2))).trace(x, x, x, segments)
    assert traced.lower(lowering_platforms=("cuda",)).as_text().count("gpu$xla.gpu.triton") == 3
