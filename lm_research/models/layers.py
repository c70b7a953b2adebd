"""Basic layers: parameters with named axes, dense layers, norms, dropout.

Every parameter is an `nnx.Param` whose metadata `axes` names its logical axes (parallel/rules.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lm_research.models.architecture import Architecture
from lm_research.models.cpu_products import bfloat16_product, few_rows, is_few, multiplies_bfloat16, rounded_product
from lm_research.models.quantization import quantized_product
from lm_research.parallel.hardware import platform
from lm_research.parallel.rules import constrain, first_row, gathers_parameters, length_parts, parameter_parts

Axes = tuple[str | None, ...]
STATISTICS = "statistics"  # name of the statistics of norms and of attention for jax.checkpoint
SUBLANES = 8  # rows of a register of TPUs
LONG_RING = (
    64  # devices of an axis, from which libtpu 0.0.52 sums parts of arrays on a 16x16 of v5e; it does not on a 4x4
)


def named(x: jax.Array, name: str | None) -> jax.Array:
    """Name an array for the policies of jax.checkpoint (`remat_names`); None names nothing."""
    return x if name is None else checkpoint_name(x, name)


def make_param(
    rngs: nnx.Rngs, shape: Sequence[int], axes: Axes, arch: Architecture, std: float | None = None, **metadata: Any
) -> nnx.Param[jax.Array]:
    """Make a weight matrix or table with the architecture's initial distribution, and with more metadata."""
    std = arch.init_std if std is None else std
    if arch.init == "truncated_normal":
        # Cut at two deviations and not rescaled afterwards, as in BERT's released code.
        value = std * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32)
    else:
        value = std * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(value, axes=axes, **metadata)


def zeros_param(shape: Sequence[int], axes: Axes) -> nnx.Param[jax.Array]:
    """Make a parameter, such as a bias, that starts at zero."""
    return nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes)


def broadcast_rows(vector: jax.Array, shape: Sequence[int]) -> jax.Array:
    """`jnp.broadcast_to(vector, shape)` whose gradient is a product with a vector of ones.

    On CPUs XLA's sum over leading axes is 10 to 30 times slower than this product; on other devices both take equally long.
    """
    return _broadcast_rows(tuple(shape), vector)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _broadcast_rows(shape: tuple[int, ...], vector: jax.Array) -> jax.Array:
    return jnp.broadcast_to(vector, shape)


def _broadcast_rows_forward(shape: tuple[int, ...], vector: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.broadcast_to(vector, shape), vector


def _broadcast_rows_backward(shape: tuple[int, ...], vector: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    if gradient.ndim > 2 and length_parts(gradient.shape[1]) > 1:
        total = gradient.sum(range(gradient.ndim - vector.ndim), dtype=jnp.float32)
    else:
        rows = gradient.reshape(-1, vector.size)
        # On TPUs with the 8 rows of a tile, as XLA turns a product with one vector into a sum, which takes several times as long.
        ones = jnp.ones((*(8,) * (platform() == "tpu"), len(rows)), rows.dtype)
        total = jnp.dot(ones, rows, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
        total = total.reshape(-1, vector.size)[0]
    return (total.astype(vector.dtype).reshape(vector.shape),)


_broadcast_rows.defvjp(_broadcast_rows_forward, _broadcast_rows_backward)


class Dense(nnx.Module):
    """A layer that contracts the last `len(inputs)` axes of its input with a kernel [*inputs, *outputs], and adds an optional bias.

    Attributes:
      inputs, outputs: sizes of the kernel's axes.
      outputs_first: whether the kernel is stored as a matrix [outputs, inputs] instead, the layout for few rows (decode_layout.py).
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
        self.kernel = make_param(rngs, sizes, axes, arch, std, rows=math.prod(sizes[: len(inputs)]))
        self.bias = zeros_param(sizes[len(inputs) :], axes[len(inputs) :]) if bias else None
        self.inputs, self.outputs = sizes[: len(inputs)], sizes[len(inputs) :]
        self.axes = axes[0], axes[len(inputs)]  # of the kernel as a matrix
        self.outputs_first = False
        self.dtype, self.quantization = arch.compute_dtype, arch.quantization

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer: [..., *inputs] -> [..., *outputs]."""
        leading, kernel = x.shape[: -len(self.inputs)], self.kernel[...].astype(self.dtype)
        plain, divided = self.quantization == "none", len(leading) > 1 and length_parts(leading[1]) > 1
        if plain and not self.outputs_first and (divided or platform() != "cpu"):
            # Axes of positions are kept. Where devices divide them, a device's positions would not be contiguous after flattening
            # (rules.flatten_rows); for TPUs, XLA fuses a product with what surrounds it only if both have the same axes.
            x, matrix_IO = x.reshape(*leading, -1), _as_matrix(kernel, math.prod(self.inputs))
            y_RO = gathered_product(self.axes, x, matrix_IO) if _gathers() else jnp.tensordot(x, matrix_IO, 1)
            if self.bias is not None:
                bias = self.bias[...].astype(self.dtype).reshape(-1)
                # XLA fuses the sum of the bias' gradient with whatever computes the gradient, but not with an attention kernel.
                y_RO += broadcast_rows(bias, y_RO.shape) if self.axes[1] == "heads" else bias
            return named(y_RO, self.axes[1]).reshape(*leading, *self.outputs)
        # One product of two matrices, whose gradients are such products too, without transposed copies (up to 1.7 times as fast on a
        # CPU). Flattening keeps batch and heads outermost, so it moves nothing between devices.
        x_RI = x.reshape(-1, math.prod(self.inputs))
        if not plain:
            y_RO = quantized_product(self.quantization, x_RI, _as_matrix(kernel, x_RI.shape[1]))
        elif not self.outputs_first:
            matrix_IO = _as_matrix(kernel, x_RI.shape[1])
            if multiplies_bfloat16(self.dtype):
                y_RO = bfloat16_product(x_RI, matrix_IO).astype(self.dtype)
            else:
                y_RO = x_RI @ matrix_IO
        else:
            y_RO = few_rows(kernel, x_RI) if is_few(x_RI) else x_RI @ kernel.T
        if self.bias is not None:
            y_RO += broadcast_rows(self.bias[...].astype(self.dtype).reshape(-1), y_RO.shape)
        return named(y_RO, self.axes[1]).reshape(*leading, *self.outputs)

    def apply_to_columns(self, x_IR: jax.Array) -> jax.Array:
        """The output [outputs, R] of columns [inputs, R]; for layers with `outputs_first`."""
        y_OR = rounded_product(self.kernel[...].astype(self.dtype), x_IR)
        return y_OR if self.bias is None else y_OR + self.bias[...].astype(self.dtype)[:, None]


def _as_matrix(kernel: jax.Array, rows: int) -> jax.Array:
    """A kernel as a matrix of `rows` rows.

    On TPUs it is converted from float32 once and not anew for each block of rows of the product, and its gradient is a matrix until it is
    summed over devices: otherwise XLA pads heads [D, H, 64] to 128. Not if it is gathered: a barrier would keep the gathering from running
    beside other products.
    """
    matrix = kernel.reshape(rows, -1)
    return jax.lax.optimization_barrier(matrix) if platform() == "tpu" and not _gathers() else matrix


def _gathers() -> bool:
    """Whether this is a TPU that gathers kernels."""
    return platform() == "tpu" and gathers_parameters()


# Axes of kernels -> those of the arrays that they are multiplied with, of which each device has a part. It gathers the other axes.
_MULTIPLIED = {"heads": "act_heads", "mlp": "act_mlp", "vocab": "act_vocab"}


def _gathered(axes: tuple[str | None, str | None], matrix_IO: jax.Array) -> jax.Array:
    """A matrix with these axes of parameters, or its gradient, as devices multiply with it.

    XLA gathers parts of heads [D, H, K] that are no whole registers before the other products, and copies the whole into the order of a
    matrix, in each pass. The barrier leaves one such copy.
    """
    whole_IO = constrain(matrix_IO, *(_MULTIPLIED.get(axis or "") for axis in axes))
    sizes = zip(matrix_IO.shape, axes, strict=True)
    odd = any(size // parameter_parts(axis) % SUBLANES for size, axis in sizes if axis not in _MULTIPLIED)
    return jax.lax.optimization_barrier(whole_IO) if "heads" in axes and odd else whole_IO


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gathered_product(axes: tuple[str | None, str | None], x: jax.Array, matrix_IO: jax.Array) -> jax.Array:
    """The product [..., O] of [..., I] and a matrix that devices of a TPU have parts of; `axes` are its axes of parameters.

    The parts are gathered before the product. Each pass gathers them, so that loops do not stack whole matrices; XLA gathers once if
    layers are unrolled. The gradient is summed whole where the parts of a sum are slow: libtpu forms them along long rings of chips only,
    and of whole registers only.
    """
    return jnp.tensordot(x, _gathered(axes, matrix_IO), 1)


def _gathered_product_forward(
    axes: tuple[str | None, str | None], x: jax.Array, matrix_IO: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return gathered_product(axes, x, matrix_IO), (x, matrix_IO)


def _gathered_product_backward(
    axes: tuple[str | None, str | None], residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, matrix_IO = residuals
    positions = tuple(range(x.ndim - 1))
    gradient_IO = jnp.tensordot(x, gradient, (positions, positions))
    sizes = {axis: size for size, axis in zip(matrix_IO.shape, axes, strict=True) if axis not in _MULTIPLIED}
    if all(sums_parts(size, parameter_parts(axis)) for axis, size in sizes.items()):
        gradient_IO = jax.lax.optimization_barrier(gradient_IO)  # XLA would pad heads [D, H, 64] to 128 before it sums
    else:
        gradient_IO = _gathered(axes, gradient_IO)
    return jnp.tensordot(gradient, _gathered(axes, matrix_IO), ((-1,), (1,))), gradient_IO


def sums_parts(size: int, parts: int) -> bool:
    """Whether TPUs sum an array over devices in the parts that they keep, of an axis of this size."""
    return parts == 1 or parts >= LONG_RING and size // parts % SUBLANES == 0


gathered_product.defvjp(_gathered_product_forward, _gathered_product_backward)


def as_matrices(layers: Any) -> Any:
    """Reshape the kernels of stacked layers, [N, *inputs, *outputs], to matrices [N, I, O] on TPUs that gather them.

    XLA pads heads [D, H, 64] to 128 there. So their gradients are stacked as matrices, and are reshaped once.
    """
    if not _gathers():
        return layers

    def reshape(param: Any) -> Any:
        rows = param.get_metadata().get("rows", 0)
        return param.replace(param[...].reshape(len(param), rows, -1)) if rows and param.ndim > 3 else param

    return jax.tree.map(reshape, layers, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


class LayerNorm(nnx.Module):
    """Layer normalization over the last axis (Ba et al. 2016), statistics in float32."""

    def __init__(self, arch: Architecture, width: int = 0) -> None:
        width = width or arch.hidden_size
        self.scale = _norm_scale(arch, width)
        self.bias = zeros_param((width,), (None,)) if arch.norm_bias else None
        self.epsilon, self.offset = arch.norm_epsilon, arch.norm_offset

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize the last axis, and return the input's type."""
        if platform() != "cpu":
            return _normalize((self.epsilon, True), x, *_factor_and_bias(self.scale, self.offset, self.bias))
        x32 = x.astype(jnp.float32)
        mean = x32.mean(-1, keepdims=True)
        centered = x32 - mean
        variance = jnp.square(centered).mean(-1, keepdims=True)
        y = centered * jax.lax.rsqrt(variance + self.epsilon)
        y = _scaled(y, self.scale, self.offset)
        return (y if self.bias is None else y + broadcast_rows(self.bias[...], y.shape)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalization over the last axis (Zhang and Sennrich 2019), statistics in float32."""

    def __init__(self, arch: Architecture, width: int = 0) -> None:
        self.scale = _norm_scale(arch, width or arch.hidden_size)
        self.epsilon, self.offset = arch.norm_epsilon, arch.norm_offset

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalize the last axis, and return the input's type."""
        if platform() != "cpu":
            return _normalize((self.epsilon, False), x, *_factor_and_bias(self.scale, self.offset))
        x32 = x.astype(jnp.float32)
        y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.epsilon)
        return _scaled(y, self.scale, self.offset).astype(x.dtype)


def _norm_scale(arch: Architecture, width: int) -> nnx.Param[jax.Array] | None:
    """Make a norm's scale, if the architecture's norms have one."""
    return nnx.Param(jnp.full((width,), 1 - arch.norm_offset, jnp.float32), axes=(None,)) if arch.norm_scale else None


def _factor_and_bias(
    scale: nnx.Param[jax.Array] | None, offset: float, bias: nnx.Param[jax.Array] | None = None
) -> tuple[jax.Array | None, jax.Array | None]:
    """A norm's factor, which is in float32 if it has an offset, and its bias."""
    factor = None
    if scale is not None:
        factor = scale[...].astype(jnp.float32) + offset if offset else scale[...]
    return factor, None if bias is None else bias[...]


def _scaled(y: jax.Array, scale: nnx.Param[jax.Array] | None, offset: float) -> jax.Array:
    """Multiply by a norm's factor."""
    factor, _ = _factor_and_bias(scale, offset)
    return y if factor is None else y * broadcast_rows(factor, y.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalize(static: tuple[float, bool], x: jax.Array, factor: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """Normalize the last axis as the norms define; `static` is (epsilon, whether the mean is subtracted).

    The backward pass reads x in its own type and one or two statistics per row. Automatic differentiation would store several float32
    arrays of the size of x, which accelerators take longer to read than to compute.
    """
    return _normalize_forward(static, x, factor, bias)[0]


def _normalize_forward(
    static: tuple[float, bool], x: jax.Array, factor: jax.Array | None, bias: jax.Array | None
) -> tuple[jax.Array, tuple[Any, ...]]:
    epsilon, has_mean = static
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1) if has_mean else None
    if mean is None:
        variance = jnp.square(x32).mean(-1)
    elif x.dtype == jnp.float32:
        variance = jnp.square(x32 - mean[..., None]).mean(-1)
    else:
        # Both statistics from one pass over x. With a mean of r deviations this is wrong by some 2^-23 r^2 of the variance; bfloat16 has
        # rounded x by 2^-9 of its size, which alone changes the variance by 2^-18 r^2 / 3.
        variance = jnp.maximum(jnp.square(x32).mean(-1) - jnp.square(mean), 0.0)
    mean = None if mean is None else named(mean, STATISTICS)
    inverse = named(jax.lax.rsqrt(variance + epsilon), STATISTICS)
    centered = x32 if mean is None else x32 - mean[..., None]
    y = centered * inverse[..., None]
    y = y if factor is None else y * factor
    y = y if bias is None else y + bias
    return y.astype(x.dtype), (x, mean, inverse, factor, bias)


def _normalize_backward(
    static: tuple[float, bool], kept: tuple[Any, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    x, mean, inverse, factor, bias = kept
    x32, gradient32, rows = x.astype(jnp.float32), gradient.astype(jnp.float32), range(x.ndim - 1)
    inverse = inverse[..., None]
    normal = (x32 if mean is None else x32 - mean[..., None]) * inverse
    inner = gradient32 if factor is None else gradient32 * factor
    # Row by row: x is orthogonal to its derivative, and so is a constant if the mean is subtracted.
    along = inner - normal * (inner * normal).mean(-1, keepdims=True)
    along = along if mean is None else along - inner.mean(-1, keepdims=True)
    return (
        (along * inverse).astype(x.dtype),
        None if factor is None else (gradient32 * normal).sum(rows).astype(factor.dtype),
        None if bias is None else gradient32.sum(rows).astype(bias.dtype),
    )


_normalize.defvjp(_normalize_forward, _normalize_backward)


Norm = LayerNorm | RMSNorm
_NORMS: dict[str, type[Norm]] = {"layer": LayerNorm, "rms": RMSNorm}


def norm(arch: Architecture, width: int = 0) -> Norm:
    """Make the architecture's kind of norm, over `width` elements or D."""
    return _NORMS[arch.norm_kind](arch, width)


def random_bits(
    key: jax.Array, shape: Sequence[int], whole: Sequence[int] = (), start: Sequence[int | jax.Array] = ()
) -> jax.Array:
    """Draw one uint32 per element, an integer hash of (key, index of the element).

    A counter-based generator (Salmon et al. 2011) that is purely elementwise: it fuses with its consumer, takes two multiplications per
    element where threefry takes twenty rounds, and draws the same bits however the array is divided over devices. The mixing constants
    are Wellons' lowbias32, with half of the key added between rounds. Good enough for dropout, but not for initialization or sampling,
    which use jax.random.

    Args:
      key: a jax.random key.
      shape: shape of the result.
      whole: shape of the array that the result is a part of; empty is `shape`.
      start: index of the part's first element along each axis; empty is 0.
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
    """Hash element indices with both halves of a key, for `random_bits`; all are uint32."""
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
    """Set elements to 0 with probability `rate`, and scale the rest by 1 / (1 - rate) (Srivastava et al. 2014).

    Args:
      x: any array; its first axis is the batch.
      rate: dropout probability, exact to 2**-32.
      key: a jax.random key, or None to return x unchanged (evaluation).
      whole: as for `random_bits`.
      start: as for `random_bits`; by default, inside jax.shard_map, the start of the device's part of the batch.
    """
    if key is None or rate == 0.0:
        return x
    if not start and jax.sharding.get_abstract_mesh().manual_axes:
        start = (first_row(x.shape[0]), *(0,) * (x.ndim - 1))
    drop = _dropped if platform() == "cpu" else _dropout  # reading a stored mask is faster on a CPU
    return drop(rate, tuple(whole), x, key, tuple(start))


def _dropped(
    rate: float, whole: tuple[int, ...], x: jax.Array, key: jax.Array, start: tuple[int | jax.Array, ...]
) -> jax.Array:
    keep = random_bits(key, x.shape, whole, start) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


_dropout = jax.custom_vjp(_dropped, nondiff_argnums=(0, 1))


def _dropout_forward(
    rate: float, whole: tuple[int, ...], x: jax.Array, key: jax.Array, start: tuple[int | jax.Array, ...]
) -> tuple[jax.Array, tuple[Any, ...]]:
    return _dropped(rate, whole, x, key, start), (key, start)


def _dropout_backward(
    rate: float, whole: tuple[int, ...], kept: tuple[Any, ...], gradient: jax.Array
) -> tuple[jax.Array, None, None]:
    """Draw the same bits again. Behind a barrier, because XLA would store the mask of the forward pass instead."""
    key, start = kept
    again = jax.random.wrap_key_data(jax.lax.optimization_barrier(jax.random.key_data(key)))
    return _dropped(rate, whole, gradient, again, start), None, None


_dropout.defvjp(_dropout_forward, _dropout_backward)


def split_key(key: jax.Array | None, count: int) -> Sequence[jax.Array | None]:
    """Split a key into `count` independent ones; None is split into `count` times None."""
    return [None] * count if key is None else list(jax.random.split(key, count))
