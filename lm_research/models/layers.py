"""The small parts: parameters with named axes, dense layers, layer norm, dropout, activations.

Every parameter is an `nnx.Param` whose metadata `axes` names its logical axes (see parallel/rules.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lm_research.models.architecture import Architecture
from lm_research.parallel.rules import first_row, length_parts

Axes = tuple[str | None, ...]


def make_param(
    rngs: nnx.Rngs, shape: Sequence[int], axes: Axes, arch: Architecture, std: float | None = None
) -> nnx.Param[jax.Array]:
    """A weight matrix or table with the architecture's initial distribution."""
    std = arch.init_std if std is None else std
    if arch.init == "truncated_normal":
        # Cut at two deviations, not rescaled afterwards: what BERT's released code calls stddev.
        value = std * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32)
    else:
        value = std * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(value, axes=axes)


def zeros_param(shape: Sequence[int], axes: Axes) -> nnx.Param[jax.Array]:
    return nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes)


def broadcast_rows(vector: jax.Array, shape: Sequence[int]) -> jax.Array:
    """`jnp.broadcast_to(vector, shape)` whose gradient is a product with a row of ones.

    XLA's CPU compiler sums over leading axes 10 to 30 times slower than it multiplies by ones; elsewhere it is the same.
    """
    return _over_rows(tuple(shape), vector)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _over_rows(shape: tuple[int, ...], vector: jax.Array) -> jax.Array:
    return jnp.broadcast_to(vector, shape)


def _over_rows_forward(shape: tuple[int, ...], vector: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.broadcast_to(vector, shape), vector


def _over_rows_backward(shape: tuple[int, ...], vector: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    if gradient.ndim > 2 and length_parts(gradient.shape[1]) > 1:
        total = gradient.sum(range(gradient.ndim - vector.ndim), dtype=jnp.float32)
    else:
        rows = gradient.reshape(-1, vector.size)
        ones = jnp.ones(len(rows), rows.dtype)
        total = jnp.dot(ones, rows, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    return (total.astype(vector.dtype).reshape(vector.shape),)


_over_rows.defvjp(_over_rows_forward, _over_rows_backward)


class Dense(nnx.Module):
    """Contracts the last `len(inputs)` axes of its input with a kernel [*inputs, *outputs] and adds a bias, if any.

    Attributes:
      inputs, outputs: sizes of the kernel's axes.
      outputs_first: whether the kernel is stored as one matrix [O, I] instead, as decode_layout.py lays it out for few rows.
    """

    def __init__(
        self,
        inputs: Sequence[tuple[int, str | None]],
        outputs: Sequence[tuple[int, str | None]],
        arch: Architecture,
        rngs: nnx.Rngs,
        std: float | None = None,
        bias: bool = True,
    ) -> None:
        sizes, axes = zip(*inputs, *outputs, strict=True)
        std = (arch.init_std if std is None else std) / arch.width_ratio**0.5
        self.kernel = make_param(rngs, sizes, axes, arch, std)
        self.bias = zeros_param(sizes[len(inputs) :], axes[len(inputs) :]) if bias else None
        self.inputs, self.outputs = sizes[: len(inputs)], sizes[len(inputs) :]
        self.outputs_first = False
        self.dtype = arch.compute_dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        leading, kernel = x.shape[: -len(self.inputs)], self.kernel[...].astype(self.dtype)
        if (
            len(leading) > 1 and length_parts(leading[1]) > 1
        ):  # flattened, positions of a device would not lie together (rules.flatten_rows)
            y = jnp.tensordot(x, kernel, len(self.inputs))
            return y if self.bias is None else y + self.bias[...].astype(self.dtype)
        # As one product of two matrices: its gradients are such products too, without transposed copies (up to 1.7 x
        # on a CPU). Flattening keeps the batch and the heads outermost, so it moves nothing between devices.
        x_RI = x.reshape(-1, math.prod(self.inputs))
        if not self.outputs_first:
            y_RO = x_RI @ kernel.reshape(x_RI.shape[1], -1)
        else:
            y_RO = few_rows(kernel, x_RI) if is_few(x_RI) else x_RI @ kernel.T
        if self.bias is not None:
            y_RO += broadcast_rows(self.bias[...].astype(self.dtype).reshape(-1), y_RO.shape)
        return y_RO.reshape(*leading, *self.outputs)

    def columns(self, x_IR: jax.Array) -> jax.Array:
        """The output [O, R] of columns [I, R], of a layer that has `outputs_first`."""
        y_OR = self.kernel[...].astype(self.dtype) @ x_IR
        return y_OR if self.bias is None else y_OR + self.bias[...].astype(self.dtype)[:, None]


FEW_ROWS = 16  # products with at most so many rows are bound by reading the matrix


def is_few(x_RI: jax.Array) -> bool:
    """Whether a product with these rows is faster as `few_rows`."""
    return len(x_RI) <= FEW_ROWS and jax.default_backend() == "cpu"


def few_rows(matrix_OI: jax.Array, x_RI: jax.Array, dtype: Any = None) -> jax.Array:
    """Compute x matrix^T, [R, O], as matrix x^T, which reads the matrix as it lies, once, at up to 3 times the speed on a CPU.

    The barriers keep XLA from turning the product around again.
    """
    x_IR = jax.lax.optimization_barrier(x_RI.T)
    y_OR = jnp.matmul(matrix_OI, x_IR, preferred_element_type=dtype)
    return jax.lax.optimization_barrier(y_OR).T


class LayerNorm(nnx.Module):
    """Layer normalization over the last axis (Ba et al. 2016), statistics in float32."""

    def __init__(self, arch: Architecture, width: int = 0) -> None:
        width = width or arch.hidden_size
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32), axes=(None,))
        self.bias = zeros_param((width,), (None,)) if arch.norm_bias else None
        self.epsilon = arch.norm_epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        mean = x32.mean(-1, keepdims=True)
        centered = x32 - mean
        variance = jnp.square(centered).mean(-1, keepdims=True)
        y = centered * jax.lax.rsqrt(variance + self.epsilon)
        y = y * broadcast_rows(self.scale[...], y.shape)
        return (y if self.bias is None else y + broadcast_rows(self.bias[...], y.shape)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalization over the last axis (Zhang and Sennrich 2019), statistics in float32."""

    def __init__(self, arch: Architecture, width: int = 0) -> None:
        self.scale = nnx.Param(jnp.ones((width or arch.hidden_size,), jnp.float32), axes=(None,))
        self.epsilon = arch.norm_epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.epsilon)
        return (y * broadcast_rows(self.scale[...], y.shape)).astype(x.dtype)


Norm = LayerNorm | RMSNorm
_NORMS: dict[str, type[Norm]] = {"layer": LayerNorm, "rms": RMSNorm}


def norm(arch: Architecture, width: int = 0) -> Norm:
    """The architecture's kind of normalization, over `width` or D elements."""
    return _NORMS[arch.norm_kind](arch, width)


Elementwise = Callable[[jax.Array], jax.Array]


def with_recomputed_grad(function: Elementwise, slope: Elementwise) -> Elementwise:
    """`function` of x, computed in float32, with `slope` as its derivative.

    The slope starts again from x, behind a barrier. Otherwise XLA sees the same erf or tanh in the forward and in the backward
    pass, makes it once as an array of its own, and both passes read one large array more.
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
    # From erf, to 2e-7. jax.nn.gelu takes erfc, which keeps the relative accuracy of values near 0 far left too, but is three
    # rational functions and an exponential where XLA's erf is one short rational function.
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
    """The non-linearity called `name` in an Architecture."""
    return ACTIVATIONS[name](x)


def capped(scores: jax.Array, cap: float | None) -> jax.Array:
    """Compute cap tanh(score / cap); without a cap, or one of 0, the scores as they are."""
    return cap * jnp.tanh(scores / cap) if cap else scores


def random_bits(
    key: jax.Array, shape: Sequence[int], whole: Sequence[int] = (), start: Sequence[int | jax.Array] = ()
) -> jax.Array:
    """One uint32 per element, an integer hash of (key, element number).

    A counter-based generator (Salmon et al. 2011) that is purely elementwise: it fuses with its consumer, costs two
    multiplications an element where threefry needs twenty rounds, and gives the same bits however the array is
    divided over devices. The mixing constants are Wellons' lowbias32, with half of the key added between rounds.
    Good enough for dropout; not for initialization or sampling, which use jax.random.

    Args:
      key: a jax.random key.
      shape: of the result.
      whole, start: shape of the array that the result is a part of, and the part's first element along each axis.
    """
    high, low = jax.random.key_data(key).astype(jnp.uint32)
    element = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        if start:
            index += jnp.asarray(start[axis], jnp.uint32)
        element += index * jnp.uint32(stride % 2**32)
        stride *= (whole or shape)[axis]
    return mix_bits(element, high, low)


def mix_bits(element: jax.Array, high: jax.Array, low: jax.Array) -> jax.Array:
    """The hash of `random_bits`: of element numbers, and of both halves of a key; all uint32."""
    x = element ^ high
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = ((x ^ (x >> 15)) + low) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def dropout(
    x: jax.Array,
    rate: float,
    key: jax.Array | None,
    whole: Sequence[int] = (),
    start: Sequence[int | jax.Array] = (),
) -> jax.Array:
    """Sets elements to 0 with probability `rate` and scales the rest by 1 / (1 - rate) (Srivastava et al. 2014).

    Args:
      x: any array; its first axis is the batch.
      rate: share dropped, exact to 2**-32.
      key: a jax.random key, or None to return x unchanged (evaluation).
      whole, start: as for `random_bits`. By default, in a program per device, x is the device's rows of a batch.
    """
    if key is None or rate == 0.0:
        return x
    if not start and jax.sharding.get_abstract_mesh().manual_axes:
        start = (first_row(x.shape[0]), *(0,) * (x.ndim - 1))
    keep = random_bits(key, x.shape, whole, start) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


def split_key(key: jax.Array | None, count: int) -> Sequence[jax.Array | None]:
    """`count` independent keys, or `count` times None."""
    return [None] * count if key is None else list(jax.random.split(key, count))
