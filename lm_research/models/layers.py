"""The small parts: parameters with named axes, dense layers, layer norm, dropout, activations.

Every parameter is an `nnx.Param` whose metadata `axes` names its logical axes (see parallel/rules.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from lm_research.models.architecture import Architecture

Axes = tuple[str | None, ...]


def weight(rngs: nnx.Rngs, shape: Sequence[int], axes: Axes, arch: Architecture, std: float | None = None) -> nnx.Param:
    """A weight matrix or table with the architecture's initial distribution."""
    std = arch.init_std if std is None else std
    if arch.init == "truncated_normal":
        # Cut at two deviations, not rescaled afterwards: what BERT's released code calls stddev.
        value = std * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32)
    else:
        value = std * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(value, axes=axes)


def zeros(shape: Sequence[int], axes: Axes) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes)


class Dense(nnx.Module):
    """Contracts the last `len(inputs)` axes of its input with a kernel [*inputs, *outputs] and adds a bias."""

    def __init__(
        self,
        inputs: Sequence[tuple[int, str | None]],
        outputs: Sequence[tuple[int, str | None]],
        arch: Architecture,
        rngs: nnx.Rngs,
        std: float | None = None,
    ) -> None:
        sizes, axes = zip(*inputs, *outputs, strict=True)
        self.kernel = weight(rngs, sizes, axes, arch, std)
        self.bias = zeros(sizes[len(inputs) :], axes[len(inputs) :])
        self.contracted = len(inputs)
        self.dtype = arch.compute_dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(self.dtype)
        return jnp.tensordot(x, kernel, self.contracted) + self.bias[...].astype(self.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis (Ba et al. 2016), statistics in float32."""

    def __init__(self, arch: Architecture) -> None:
        self.scale = nnx.Param(jnp.ones((arch.hidden_size,), jnp.float32), axes=(None,))
        self.bias = zeros((arch.hidden_size,), (None,))
        self.epsilon = arch.norm_epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        mean = x32.mean(-1, keepdims=True)
        centred = x32 - mean
        variance = jnp.square(centred).mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon) * self.scale[...] + self.bias[...]
        return y.astype(x.dtype)


def activation(name: str, x: jax.Array) -> jax.Array:
    """The feed-forward non-linearity called `name` in an Architecture."""
    return jax.nn.gelu(x, approximate={"gelu": False, "gelu_tanh": True}[name])


def random_bits(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """One uint32 per element, an integer hash of (key, element number).

    A counter-based generator (Salmon et al. 2011) that is purely elementwise: it fuses with its consumer, costs two
    multiplications an element where threefry needs twenty rounds, and gives the same bits however the array is
    divided over devices. The mixing constants are Wellons' lowbias32, with half of the key added between rounds.
    Good enough for dropout; not for initialisation or sampling, which use jax.random.
    """
    high, low = jax.random.key_data(key).astype(jnp.uint32)
    element = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        element += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    x = element ^ high
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = ((x ^ (x >> 15)) + low) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Sets elements to 0 with probability `rate` and scales the rest by 1 / (1 - rate) (Srivastava et al. 2014).

    Args:
      x: any array.
      rate: share dropped, exact to 2**-32.
      key: a jax.random key, or None to return x unchanged (evaluation).
    """
    if key is None or rate == 0.0:
        return x
    keep = random_bits(key, x.shape) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


def split_key(key: jax.Array | None, count: int) -> Sequence[jax.Array | None]:
    """`count` independent keys, or `count` times None."""
    return [None] * count if key is None else list(jax.random.split(key, count))
