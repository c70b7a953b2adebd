"""Dropout by statistics, layer norm and dense layers against NumPy in float64, initial weights by their distribution.

Statistical bounds are five standard deviations of the estimate, written next to it; draws are fixed by their keys.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from helpers import tiny
from lm_research.models import layers
from lm_research.models.activations import activation, capped
from lm_research.models.cpu_products import FEW_ROWS, few_rows
from lm_research.models.embeddings import Embeddings
from lm_research.models.layers import (
    Dense,
    LayerNorm,
    RMSNorm,
    broadcast_rows,
    dropout,
    make_param,
    norm,
    random_bits,
    split_key,
)

SHAPE = (256, 1024)
COUNT = SHAPE[0] * SHAPE[1]


def dropped(key: jax.Array, rate: float = 0.1, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.asarray(dropout(jnp.ones(shape), rate, key)) == 0


def near(share: float, expected: float, count: int) -> bool:
    """Whether the fraction of `count` independent draws is within 5 sigma = 5 sqrt(p (1 - p) / n) of the expected one."""
    return abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / count)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_its_fraction_and_scales_the_rest(rate: float) -> None:
    y = np.asarray(dropout(jnp.full(SHAPE, 3.0), rate, jax.random.key(0)))
    assert np.unique(y).tolist() == [0.0, np.float32(3.0) * np.float32(1 / (1 - rate))]
    assert near((y == 0).mean(), rate, COUNT)
    # One element is 3 / (1 - rate) with probability 1 - rate: standard deviation 3 sqrt(rate / (1 - rate)).
    assert abs(y.mean() - 3.0) < 5 * 3 * math.sqrt(rate / (1 - rate) / COUNT)


def test_dropout_without_key_or_rate_changes_nothing() -> None:
    x = jnp.arange(6.0)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x
    assert split_key(None, 3) == [None] * 3


def test_dropout_keeps_the_type() -> None:
    y = dropout(jnp.ones(SHAPE, jnp.bfloat16), 0.5, jax.random.key(0))
    assert y.dtype == jnp.bfloat16 and set(np.unique(y.astype(np.float32))) == {0.0, 2.0}


def test_dropout_passes_the_gradient_of_what_it_kept() -> None:
    x, key = jnp.linspace(1, 2, 64), jax.random.key(3)
    gradient = jax.grad(lambda x: (dropout(x, 0.25, key) ** 2).sum())(x)
    kept = dropout(x, 0.25, key)
    np.testing.assert_allclose(gradient, 2 * kept / (1 - 0.25), rtol=1e-6)


def test_masks_of_two_keys_are_independent() -> None:
    first, *others = [dropped(key) for key in split_key(jax.random.key(0), 4)]
    later = dropped(jax.random.fold_in(jax.random.key(0), 1))  # the key of the next step
    for other in [*others, later]:
        assert near((first & other).mean(), 0.01, COUNT)
        assert near((first ^ other).mean(), 2 * 0.1 * 0.9, COUNT)


def test_both_words_of_a_key_decide() -> None:
    keys = [jax.random.wrap_key_data(jnp.array(words, jnp.uint32)) for words in ((1, 2), (1, 3), (2, 2))]
    first, *others = map(dropped, keys)
    assert all(0.05 < (first ^ other).mean() for other in others)


@pytest.mark.parametrize("shift", [(0, 1), (0, 2), (0, 64), (0, 512), (1, 0), (1, 1), (2, 0), (16, 0), (128, 0)])
def test_neighbors_in_a_mask_are_independent(shift: tuple[int, int]) -> None:
    mask = dropped(jax.random.key(5))
    both = mask & np.roll(mask, shift, (0, 1))
    assert near(both.mean(), 0.01, COUNT)


def test_rows_and_columns_of_a_mask_have_the_variance_of_independent_draws() -> None:
    mask = dropped(jax.random.key(6))
    for axis, length in ((0, SHAPE[0]), (1, SHAPE[1])):
        totals = mask.sum(axis)
        # Chi-square with len(totals) - 1 degrees of freedom: mean that, standard deviation sqrt(2 that).
        chi = ((totals - totals.mean()) ** 2).sum() / (length * 0.1 * 0.9)
        degrees = len(totals) - 1
        assert abs(chi - degrees) < 5 * math.sqrt(2 * degrees)


def test_one_element_over_many_steps_is_dropped_equally_often_and_without_pattern() -> None:
    steps = 20_000
    one = tiny.jit(lambda steps: jax.vmap(lambda s: random_bits(jax.random.fold_in(jax.random.key(0), s), (3,)))(steps))
    mask = np.asarray(one(jnp.arange(steps))) < round(0.1 * 2**32)
    assert all(near(share, 0.1, steps) for share in mask.mean(0))
    assert near((mask[1:] & mask[:-1]).mean(), 0.01, 3 * (steps - 1))
    assert near((mask[:, :1] & mask[:, 1:]).mean(), 0.01, 2 * steps)


def test_every_bit_is_fair_and_bytes_are_uniform() -> None:
    bits = np.asarray(random_bits(jax.random.key(7), SHAPE)).reshape(-1)
    for place in range(32):
        assert near(((bits >> place) & 1).mean(), 0.5, COUNT)
    for shift in (0, 8, 16, 24):
        counts = np.bincount((bits >> shift) & 255, minlength=256)
        chi = ((counts - COUNT / 256) ** 2).sum() / (COUNT / 256)
        assert abs(chi - 255) < 5 * math.sqrt(2 * 255)
    # 262,144 draws from 2**32 values: n (n - 1) / 2 / 2**32 = 8 equal pairs are expected, 5 sigma = 14.
    assert COUNT - len(np.unique(bits)) < 8 + 14


def test_layer_norm_equals_numpy_in_float64() -> None:
    arch = tiny.model("bert").arch
    rng = np.random.default_rng(0)
    x, scale, bias = rng.normal(3, 2, (5, 7, 16)), rng.normal(1, 0.3, 16), rng.normal(0, 0.3, 16)
    norm = LayerNorm(arch)
    norm.scale[...], norm.bias[...] = jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + arch.norm_epsilon) * scale + bias
    np.testing.assert_allclose(norm(jnp.asarray(x, jnp.float32)), expected, atol=2e-6)
    # A large common offset must not drown the variance, and a constant row has none.
    np.testing.assert_allclose(norm(jnp.asarray(x + 1000, jnp.float32)), expected, atol=2e-3)
    np.testing.assert_allclose(norm(jnp.full((1, 16), 4.0)), bias[None], atol=1e-6)
    low = norm(jnp.asarray(x, jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(np.float32), expected, atol=0.03)


def kept(function: Callable[..., jax.Array], *arguments: jax.Array) -> list[tuple[tuple[int, ...], str]]:
    """Shapes and types of the arrays that the backward pass reads."""
    pull_back = jax.eval_shape(lambda *arguments: jax.vjp(function, *arguments)[1], *arguments)
    return sorted((leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(pull_back))


@pytest.mark.parametrize(("kind", "statistics"), [(LayerNorm, 2), (RMSNorm, 1)])
def test_a_norm_of_accelerators_keeps_its_input_and_statistics_and_has_the_same_gradient(
    kind: type[LayerNorm] | type[RMSNorm], statistics: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The expected gradient is that of automatic differentiation."""
    norm, rng = kind(tiny.model("bert").arch), np.random.default_rng(0)
    graph, params = nnx.split(norm)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(1, 0.3, x.shape), jnp.float32), params)
    x, weights = (jnp.asarray(rng.normal(1, 2, (5, 7, 16)), jnp.float32) for _ in range(2))

    def apply(params: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(x)

    def gradient() -> nnx.State:
        return tiny.jit(jax.grad(lambda *inputs: (apply(*inputs) * weights).sum(), argnums=(0, 1)))(params, x)

    value, expected = apply(params, x), gradient()
    monkeypatch.setattr(layers, "platform", lambda: "tpu")
    np.testing.assert_allclose(apply(params, x), value, rtol=1e-6, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), gradient(), expected)
    large = [leaf for leaf in kept(apply, params, x.astype(jnp.bfloat16)) if len(leaf[0]) > 1]
    assert large == [((5, 7), "float32")] * statistics + [((5, 7, 16), "bfloat16")]


def test_norms_of_accelerators_equal_numpy_in_float64_with_a_large_common_offset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Values in bfloat16 lose most of theirs to an offset of 50 deviations; what is left must be normalized to the rounding of the result."""
    monkeypatch.setattr(layers, "platform", lambda: "tpu")
    norm, x = LayerNorm(tiny.model("bert").arch), np.random.default_rng(0).normal(3, 2, (5, 7, 16))
    for offset, dtype, tolerance in ((1000, jnp.float32, 2e-3), (100, jnp.bfloat16, 0.02)):
        low = jnp.asarray(x + offset, dtype)
        exact = np.asarray(low.astype(jnp.float32), np.float64)
        expected = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + norm.epsilon)
        np.testing.assert_allclose(norm(low).astype(jnp.float32), expected, atol=tolerance)


@pytest.mark.parametrize("outputs", [[(6, None)], [(3, None), (4, None)]])
def test_dense_layers_of_accelerators_keep_the_axes_of_positions(
    outputs: list[tuple[int, None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output and gradients equal those of the product of flattened rows."""
    layer, rng = Dense([(5, None)], outputs, tiny.model("bert").arch, nnx.Rngs(0)), np.random.default_rng(0)
    graph, params = nnx.split(layer)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 1, x.shape), jnp.float32), params)
    x = jnp.asarray(rng.normal(0, 1, (2, 3, 5)), jnp.float32)

    def apply(params: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(x)

    def results() -> Any:
        gradient = jax.grad(lambda *inputs: jnp.square(apply(*inputs)).sum(), argnums=(0, 1))(params, x)
        return apply(params, x), gradient, jax.make_jaxpr(lambda: apply(params, x))()

    value, gradient, flat = results()
    monkeypatch.setattr(layers, "platform", lambda: "tpu")
    same, same_gradient, whole = results()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), (same, same_gradient), (value, gradient)
    )
    ranks = [[e.outvars[0].aval.ndim for e in one.eqns if e.primitive.name == "dot_general"] for one in (flat, whole)]
    assert ranks == [[2], [3]]


def test_gradients_of_heads_are_those_of_one_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """TPUs' gradient of kernels [D, H, K], x^T dy as a matrix [D, H K]."""
    dense = Dense([(6, "embed")], [(2, "heads"), (4, None)], tiny.model("bert").arch, nnx.Rngs(0))
    rng, (graph, params) = np.random.default_rng(0), nnx.split(dense)
    x, outer = rng.normal(size=(3, 5, 6)).astype(np.float32), rng.normal(size=(3, 5, 2, 4)).astype(np.float32)
    monkeypatch.setattr(layers, "platform", lambda: "tpu")
    found = jax.grad(lambda params: (nnx.merge(graph, params)(x) * outer).sum())(params).kernel[...]
    np.testing.assert_allclose(
        found, (x.reshape(-1, 6).T @ outer.reshape(-1, 8)).reshape(6, 2, 4), rtol=1e-5, atol=1e-5
    )


def test_dense_layers_of_accelerators_quantize(monkeypatch: pytest.MonkeyPatch) -> None:
    arch = tiny.model("bert").arch.replace(quantization="int8")
    dense = Dense([(6, None)], [(2, None), (4, None)], arch, nnx.Rngs(0), bias=False)
    monkeypatch.setattr(layers, "platform", lambda: "tpu")
    monkeypatch.setattr(layers, "quantized_product", lambda kind, x, kernel: jnp.full((len(x), kernel.shape[1]), 3.0))
    np.testing.assert_array_equal(dense(jnp.ones((3, 5, 6))), np.full((3, 5, 2, 4), 3.0))


def test_dropout_of_accelerators_keeps_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    x, key = jnp.linspace(1, 2, 64), jax.random.key(3)

    def gradient() -> jax.Array:
        return jax.grad(lambda x: (dropout(x, 0.25, key) ** 2).sum())(x)

    value, expected = dropout(x, 0.25, key), gradient()
    monkeypatch.setattr(layers, "platform", lambda: "tpu")
    np.testing.assert_array_equal(dropout(x, 0.25, key), value)
    np.testing.assert_array_equal(gradient(), expected)
    assert all(math.prod(shape) < x.size for shape, _ in kept(lambda x: dropout(x, 0.25, key), x))


@pytest.mark.parametrize("kind", [LayerNorm, RMSNorm])
def test_an_offset_is_added_to_the_scale_of_a_norm(kind: type[LayerNorm] | type[RMSNorm]) -> None:
    """Gemma's stored scales w start at 0; the factor 1 + w is rounded to float32 only, not to the input's type."""
    arch = tiny.model("bert").arch
    x = np.random.default_rng(0).normal(1, 2, (5, 16))
    norm, plain = kind(arch.replace(norm_offset=1.0)), kind(arch)
    assert not norm.scale[...].any()
    np.testing.assert_array_equal(norm(jnp.asarray(x, jnp.float32)), plain(jnp.asarray(x, jnp.float32)))
    norm.scale[...] = jnp.linspace(-1, 0.004, 16)  # 1.004 in bfloat16 is 1.0078 or 1
    plain.scale[...] = 1 + jnp.linspace(-1, 0.004, 16)
    low = jnp.asarray(x, jnp.bfloat16)
    np.testing.assert_array_equal(norm(low), plain(low))


def test_the_factor_of_embeddings_is_rounded_to_the_compute_type_on_request() -> None:
    """sqrt(3072) = 55.4256 is 55.5 in bfloat16, whose numbers between 32 and 64 are 1/4 apart; transformers' Gemma rounds so."""
    arch = tiny.model("bert").arch.replace(
        embedding_scale=3072**0.5, embedding_norm=False, positions="none", num_types=0
    )
    # 1.0045 rounds to 1.0078 in bfloat16, and 1.0045 * 55.4256 / 55.5 = 1.00315 to 1.
    cases = (("bfloat16", True, 1.0078125), ("bfloat16", False, 1.0), ("float32", True, 1.0045 * 3072**0.5 / 55.5))
    for dtype, rounded, expected in cases:
        embeddings = Embeddings(arch.replace(dtype=dtype, round_embedding_scale=rounded), nnx.Rngs(0))
        embeddings.tokens[...] = jnp.full(embeddings.tokens.shape, 1.0045 / 55.5)
        got = float(tiny.jit(lambda: embeddings(jnp.ones((1, 1), int), None, None, None)[0, 0, 0])())  # noqa: B023
        assert got == pytest.approx(expected, rel=1e-6)


def test_layer_norm_has_its_familys_epsilon() -> None:
    x = np.linspace(-1e-3, 1e-3, 16)  # variance 3.8e-7, where 1e-5 and 1e-12 differ
    for family, epsilon in (("bert", 1e-12), ("gpt2", 1e-5)):
        y = LayerNorm(tiny.model(family).arch)(jnp.asarray(x, jnp.float32))
        np.testing.assert_allclose(y, (x - x.mean()) / np.sqrt(x.var() + epsilon), rtol=1e-4)


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_rms_norm_equals_numpy_in_float64(size: float) -> None:
    """At a mean square of the size of epsilon, 1e-6, epsilon under the root and after it differ."""
    arch = tiny.model("llama").arch.replace(norm_epsilon=1e-6)
    rng = np.random.default_rng(0)
    x, scale = size * rng.normal(1, 1, (5, 12)), rng.normal(1, 0.3, 12)
    norm = RMSNorm(arch, 12)
    norm.scale[...] = jnp.asarray(scale, jnp.float32)
    expected = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(norm(jnp.asarray(x, jnp.float32)), expected, atol=2e-6)
    assert norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms_have_the_width_that_they_are_made_for(kind: str) -> None:
    arch = tiny.model("bert").arch.replace(norm_kind=kind)
    assert [norm(arch, width).scale.shape for width in (0, 3)] == [(16,), (3,)]
    assert norm(arch.replace(norm_bias=False)).__dict__.get("bias") is None
    assert kind == "rms" or norm(arch, 3).bias.shape == (3,)


def test_caps_of_scores() -> None:
    """The cap c gives c tanh(x / c): 5 tanh(2) = 4.820138, and of 1, 5 tanh(0.2) = 0.9868766."""
    scores = jnp.array([10.0, 1.0, -10.0])
    np.testing.assert_allclose(capped(scores, 5.0), [4.820138, 0.9868766, -4.820138], rtol=1e-6)
    assert capped(scores, None) is capped(scores, 0.0) is scores


def test_dropout_keeps_what_is_not_below_the_rate_in_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.1 x 2^32 = 429,496,729.6 is rounded up; 1 / 0.9 = 1.1111111."""
    bits = jnp.array([0, 429_496_729, 429_496_730, 2**32 - 1], jnp.uint32)
    monkeypatch.setattr(layers, "random_bits", lambda *given: bits)
    found = dropout(jnp.ones(4), 0.1, jax.random.key(0))
    np.testing.assert_allclose(found, [0, 0, 1.1111111, 1.1111111], rtol=1e-6)


def test_bits_of_a_part_are_those_of_the_whole() -> None:
    key = jax.random.key(3)
    whole = random_bits(key, (4, 6, 5))
    np.testing.assert_array_equal(random_bits(key, (2, 3, 5), (4, 6, 5), (1, 3, 0)), whole[1:3, 3:])


def test_deviations_shrink_with_the_root_of_the_width_ratio() -> None:
    arch = tiny.model("bert").arch
    for std in (None, 0.5):
        plain, wide = (
            Dense([(16, None)], [(4, None)], one, nnx.Rngs(0), std=std).kernel[...]
            for one in (arch, arch.replace(mup_base_width=4))
        )
        np.testing.assert_allclose(wide, plain / 2, rtol=1e-6)
    zero = make_param(nnx.Rngs(0), (4,), (None,), arch, 0.0)
    assert not np.any(zero[...])


@pytest.mark.parametrize("rows", [FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("bias", [True, False])
def test_a_kernel_with_its_outputs_first_gives_the_same(rows: int, bias: bool) -> None:
    rng = np.random.default_rng(0)
    dense = Dense([(3, None)], [(5, None)], tiny.model("bert").arch, nnx.Rngs(0), bias=bias)
    kernel, x, add = rng.normal(size=(3, 5)), rng.normal(size=(rows, 3)), rng.normal(size=5) * bias
    dense.kernel[...] = jnp.asarray(kernel, jnp.float32)
    if bias:
        dense.bias[...] = jnp.asarray(add, jnp.float32)
    np.testing.assert_allclose(dense(jnp.asarray(x, jnp.float32)), x @ kernel + add, atol=1e-6)
    dense.kernel, dense.outputs_first = nnx.Param(jnp.asarray(kernel.T, jnp.float32), axes=(None, None)), True
    np.testing.assert_allclose(dense(jnp.asarray(x, jnp.float32)), x @ kernel + add, atol=1e-6)
    found = dense.apply_to_columns(jnp.asarray(x.T, jnp.float32))
    np.testing.assert_allclose(found, (x @ kernel + add).T, atol=1e-6)
    assert few_rows(jnp.ones((2, 3), jnp.bfloat16), jnp.ones((1, 3), jnp.bfloat16), jnp.float32).dtype == jnp.float32


def test_dense_contracts_the_axes_it_names() -> None:
    arch = tiny.model("bert").arch
    dense = Dense([(2, "heads"), (3, None)], [(5, "embed")], arch, nnx.Rngs(0))
    assert dense.kernel.shape == (2, 3, 5) and dense.bias.shape == (5,)
    dense.bias[...] = jnp.arange(5.0)
    x = np.random.default_rng(0).normal(size=(4, 2, 3))
    expected = np.einsum("bhk,hkd->bd", x, np.asarray(dense.kernel[...], np.float64)) + np.arange(5)
    np.testing.assert_allclose(dense(jnp.asarray(x, jnp.float32)), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 3), (4, 5, 2, 3)])
def test_over_rows_repeats_and_its_gradient_sums(shape: tuple[int, ...]) -> None:
    vector, slope = jnp.arange(6.0).reshape(2, 3), np.random.default_rng(0).normal(size=shape)
    value, pull = jax.vjp(lambda vector: broadcast_rows(vector, shape), vector)
    np.testing.assert_array_equal(value, np.broadcast_to(vector, shape))
    expected = slope.reshape(-1, 2, 3).sum(0)
    np.testing.assert_allclose(pull(jnp.asarray(slope, jnp.float32))[0], expected, rtol=1e-5, atol=1e-6)


def test_over_rows_sums_bfloat16_gradients_in_float32() -> None:
    # Added up in bfloat16 a thousand ones would stop at 256, where the next number is 258.
    _, pull = jax.vjp(lambda vector: broadcast_rows(vector, (1000, 4)), jnp.zeros(4, jnp.bfloat16))
    (gradient,) = pull(jnp.ones((1000, 4), jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16 and (gradient == 1000).all()


@pytest.mark.parametrize(("name", "expected"), [("gelu", [-0.158655, 0.841345]), ("gelu_tanh", [-0.158808, 0.841192])])
def test_activations(name: str, expected: list[float]) -> None:
    # x Phi(x) at -1 and 1: Phi(1) = 0.8413447. The approximation 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    np.testing.assert_allclose(activation(name, jnp.array([-1.0, 1.0])), expected, atol=1e-6)


def test_other_activations() -> None:
    """With the sigmoid s(x) = 1 / (1 + exp(-x)): x s(1.702 x) (Hendrycks and Gimpel 2016, section 2), x s(x), max(x, 0), tanh."""
    x = np.array([-3.0, -0.5, 0.5, 3.0])
    expected = {
        "quick_gelu": x / (1 + np.exp(-1.702 * x)),
        "silu": x / (1 + np.exp(-x)),
        "relu": x * (x > 0),
        "tanh": np.tanh(x),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(activation(name, jnp.asarray(x, jnp.float32)), values, atol=1e-6)


def exact(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value and derivative in float64 with the standard library's erfc and tanh."""
    if name == "gelu":
        cdf = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x])
        return x * cdf, cdf + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    tanh = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    return 0.5 * x * (1 + tanh), 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * inner


def value_and_slope(name: str, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    value, pull = jax.vjp(lambda x: activation(name, x), x)
    return value, pull(jnp.ones_like(value))[0]


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_gelu_equals_its_definition_in_float64(name: str) -> None:
    tiny_ones = np.logspace(-30, -2, 200)
    x = np.concatenate([np.linspace(-20, 20, 20_001), tiny_ones, -tiny_ones]).astype(np.float32)
    value, slope = jax.jit(functools.partial(value_and_slope, name))(x)
    expected, expected_slope = exact(name, x.astype(np.float64))
    error = np.abs(value - expected)
    # An error of 2e-7 in Phi, times x. The slope of the tanh form multiplies the error of 1 + tanh by up to x^3 / 10.
    assert (error / np.maximum(1, np.abs(x))).max() < 2.5e-7
    small = np.abs(x) < 1e-2
    assert (error[small] <= 2.5e-7 * np.abs(expected[small]) + 1e-37).all()
    assert np.abs(slope - expected_slope).max() < (4e-7 if name == "gelu" else 1.2e-5)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_gelu_equals_jax_in_value_and_in_derivatives_of_both_orders_and_modes(name: str) -> None:
    ours = functools.partial(activation, name)
    theirs = functools.partial(jax.nn.gelu, approximate=name == "gelu_tanh")

    def all_ways(f: Callable) -> tuple[jax.Array, ...]:
        x = jnp.linspace(-5, 5, 64).reshape(4, 16)

        def total(x):
            return f(x).sum()

        forward = jax.jvp(f, (x,), (jnp.cos(x),))
        looped = jax.grad(lambda x: jax.lax.scan(lambda c, row: (c + total(row), None), 0.0, x)[0])(x)
        again = jax.vmap(jax.grad(jax.checkpoint(total)))(x)
        second = jax.vmap(jax.vmap(jax.grad(jax.grad(f))))(x)
        return *forward, looped, again, second

    for a, b in zip(tiny.jit(lambda: all_ways(ours))(), tiny.jit(lambda: all_ways(theirs))(), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_gelu_in_bfloat16_is_the_rounded_value(name: str) -> None:
    # Phi itself rounded to bfloat16 would be 4% off at -2, where it is 0.02 = 1 - 0.98.
    x = jnp.linspace(-8, 8, 2001).astype(jnp.bfloat16)
    value, slope = value_and_slope(name, x)
    assert value.dtype == slope.dtype == jnp.bfloat16
    expected, expected_slope = exact(name, np.asarray(x, np.float64))
    np.testing.assert_allclose(np.asarray(value, np.float64), expected, rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(np.asarray(slope, np.float64), expected_slope, rtol=2**-8, atol=1e-5)


def test_initial_weights_have_their_distribution() -> None:
    count = 400_000
    sigma = 0.02 / math.sqrt(2 * count)  # of an estimated standard deviation of a normal distribution
    gpt2 = np.asarray(make_param(nnx.Rngs(0), (count,), (None,), tiny.model("gpt2").arch)[...])
    assert abs(gpt2.mean()) < 5 * 0.02 / math.sqrt(count) and abs(gpt2.std() - 0.02) < 5 * sigma
    assert near((np.abs(gpt2) > 0.04).mean(), 0.0455003, count)  # outside two deviations
    bert = np.asarray(make_param(nnx.Rngs(0), (count,), (None,), tiny.model("bert").arch)[...])
    # Cut at 2: variance 1 - 2 * 2 phi(2) / (2 Phi(2) - 1) = 1 - 4 * 0.0539910 / 0.9544997 = 0.7737413.
    assert np.abs(bert).max() <= 0.04 and np.abs(bert).max() > 0.0399
    assert abs(bert.std() - 0.02 * math.sqrt(0.7737413)) < 5 * sigma
    assert near((np.abs(bert) > 0.02).mean(), (0.3173105 - 0.0455003) / 0.9544997, count)
