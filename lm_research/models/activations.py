"""Activations of feed-forward layers, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Elementwise = Callable[[jax.Array], jax.Array]


def with_recomputed_grad(function: Elementwise, slope: Elementwise) -> Elementwise:
    """Make `function` compute in float32, with `slope` as its derivative, recomputed from x.

    A barrier separates the two passes. Otherwise XLA computes the erf or tanh that both contain once and stores it, and both passes read
    one more large array.
    """

    @jax.custom_jvp
    def apply(x: jax.Array) -> jax.Array:
        return function(x.astype(jnp.float32)).astype(x.dtype)

    @apply.defjvp
    def derivative(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
        again = jax.lax.optimization_barrier(primals[0])
        return apply(*primals), tangents[0] * slope(again.astype(jnp.float32)).astype(again.dtype)

    return apply


def _normal_cdf(x: jax.Array) -> jax.Array:
    # Accurate to 2e-7. jax.nn.gelu uses erfc, which is also relatively accurate for large negative x, but takes three rational functions
    # and an exponential, while XLA's erf is one short rational function.
    return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))


def _gelu_slope(x: jax.Array) -> jax.Array:
    return _normal_cdf(x) + x * jnp.exp(-0.5 * jnp.square(x)) / math.sqrt(2 * math.pi)


def _gelu_tanh_parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """tanh(u) and du / dx for u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    scale, cubic, square = math.sqrt(2 / math.pi), 0.044715, jnp.square(x)
    return jnp.tanh(scale * x * (1 + cubic * square)), scale * (1 + 3 * cubic * square)


def _gelu_tanh_slope(x: jax.Array) -> jax.Array:
    tanh, inner = _gelu_tanh_parts(x)
    return 0.5 * (1 + tanh) * (1 + x * (1 - tanh) * inner)


gelu = with_recomputed_grad(lambda x: x * _normal_cdf(x), _gelu_slope)
gelu_tanh = with_recomputed_grad(lambda x: 0.5 * x * (1 + _gelu_tanh_parts(x)[0]), _gelu_tanh_slope)

# Name in an Architecture -> function. "gelu" is exact, "gelu_tanh" its tanh approximation (Hendrycks and Gimpel 2016),
# "quick_gelu" their sigmoid approximation; "silu" is also called swish.
ACTIVATIONS: dict[str, Elementwise] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


def activation(name: str, x: jax.Array) -> jax.Array:
    """Apply one of ACTIVATIONS."""
    return ACTIVATIONS[name](x)


def capped(scores: jax.Array, cap: float | None) -> jax.Array:
    """Compute cap tanh(score / cap); without a cap, or with a cap of 0, return the scores unchanged."""
    return cap * jnp.tanh(scores / cap) if cap else scores
