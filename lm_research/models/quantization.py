"""Matrix products of 8-bit numbers in training (`train.quantization`), computed by qwix.

A product x W, and the two products of its gradient, take operands of 8 bits. Each operand is divided by scales that map the largest
absolute value along the contracted axis to the largest number of the type, and rounded. The scales are factors of the result:

    x W ~ s_x (x_q W_q) s_W        s_x: a scale per row of x; s_W: a scale per column of W

The derivative of rounding counts as 1 (the straight-through estimator, Bengio et al. 2013), so for a gradient g of x W

    dx = (g s_W) W_q^T        dW = x_q^T (s_x g)

of which g s_W is quantized with a scale per row, and s_x g with a scale per column and per part of the batch that a device has, so that
devices need not agree on scales. Parameters, their optimizer and everything outside of the blocks keep their types.

qwix's QtProvider composes the same operations, but replaces functions of JAX while a model runs and finds weights by the callers' frames.
Blocks here are pure functions inside a compiled loop, so this module calls the two public functions that it consists of.

Legend: R rows, I inputs, O outputs, P parts of the batch.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm_research.config import Config
from lm_research.errors import ConfigError, MeshError
from lm_research.models.architecture import Architecture
from lm_research.parallel.hardware import Chip
from lm_research.parallel.rules import batch_parts

# Name -> type of inputs and weights, and of gradients (Micikevicius et al. 2022, "FP8 formats for deep learning", section 3).
TYPES: dict[str, tuple[Any, Any]] = {
    "int8": (jnp.int8, jnp.int8),
    "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2),
}
_PLAIN = (((1,), (0,)), ((), ()))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def quantized_product(quantization: str, x_RI: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    """Compute x W, [R, O] in x's type, in the 8-bit type that `quantization` names (a key of TYPES)."""
    return _forward(quantization, x_RI, kernel_IO)[0]


def _forward(quantization: str, x_RI: jax.Array, kernel_IO: jax.Array) -> tuple[jax.Array, tuple[Any, Any]]:
    import qwix  # optional

    dtype, _ = TYPES[quantization]
    x = qwix.quantize(x_RI, dtype, channelwise_axes=(0,))
    kernel = qwix.quantize(kernel_IO, dtype, channelwise_axes=(1,))
    return qwix.dot_general(x, kernel, _PLAIN), (x, kernel)


def _backward(quantization: str, kept: tuple[Any, Any], gradient_RO: jax.Array) -> tuple[jax.Array, jax.Array]:
    import qwix

    (x, kernel), (_, dtype) = kept, TYPES[quantization]
    by_row = qwix.quantize(gradient_RO * kernel.scale, dtype, channelwise_axes=(0,))
    dx_RI = qwix.dot_general(by_row, kernel.qvalue, (((1,), (1,)), ((), ())))
    parts = batch_parts() if len(gradient_RO) % batch_parts() == 0 else 1
    x_PRI, gradient_PRO = (one.reshape(parts, -1, one.shape[1]) for one in (x.qvalue, gradient_RO * x.scale))
    by_column = qwix.quantize(gradient_PRO, dtype, channelwise_axes=(0, 2))
    dkernel_PIO = qwix.dot_general(x_PRI, by_column, (((1,), (1,)), ((0,), (0,))))
    return dx_RI, dkernel_PIO.sum(0)


quantized_product.defvjp(_forward, _backward)


def check_quantization(config: Config, arch: Architecture, mesh: Mapping[str, int], chip: Chip | None) -> None:
    """Check that a run can train with its `train.quantization`.

    Args:
      config: config of the run.
      arch: its architecture.
      mesh: sizes of the mesh's axes.
      chip: the chips; None for CPUs, which compute the same numbers slowly, and for unknown chips.

    Raises:
      ConfigError: qwix is missing, or the model or the chip does not support it.
      MeshError: the mesh does not.
    """
    name = config.train.quantization
    if name == "none":
        return
    setting, remedy = f"train.quantization={name}", "Set --config.train.quantization=none."
    if importlib.util.find_spec("qwix") is None:
        raise ConfigError(f"{setting} needs qwix: pip install 'lm_research[quant]' (or pip install qwix).")
    if any(spec.num_experts for stack in (arch, arch.encoder) if stack is not None for spec in stack.layer_specs):
        raise ConfigError(
            f"{setting} does not support model.num_experts: the grouped products of experts are not quantized. {remedy}"
        )
    if mesh["context"] > 1:
        raise MeshError(
            f"{setting} does not support mesh.context={mesh['context']}, because gradients are quantized by part of the batch, not "
            f"of the sequence. Set --config.mesh.context=1 or --config.train.quantization=none."
        )
    if chip is not None and not {"int8": chip.int8, "fp8": chip.fp8}[name]:
        raise ConfigError(
            f"{setting}: {chip.kind} does not multiply numbers of this type faster than bfloat16. {remedy}"
        )
