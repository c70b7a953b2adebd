"""A decoder's parameters laid out for few rows, and the products with them.

Weights are read once for each new token, which is all that costs time in small batches. On a CPU a product with few rows is up to
3 times as fast when it reads the matrix in the order in which it lies and has it first: matrix [O, I] times columns [I, R].

Legend: B batch, L length, M places that are predicted, R rows (B x L), I and O inputs and outputs of a matrix, D model width, F
feed-forward width, E width of the token table, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm_research.models.definition import ModelDefinition, Params
from lm_research.models.heads import Model
from lm_research.models.layers import Dense, activation, over_rows
from lm_research.models.transformer import Block, FeedForward
from lm_research.parallel.rules import constrain

HEAD = "head"  # name of the table of predictions among the parameters of `unroll`
FEW_ROWS = 16  # products with at most so many rows are bound by reading the matrix


def unroll(definition: ModelDefinition, params: Params) -> Params:
    """Parameters with the decoder's layers apart, their matrices as [O, I], and the table of predictions as [E, V] too.

    These are copies; the rest is shared.

    `bind` takes either form. Run it inside jit.
    """
    contracted = _contracted(definition)

    def one(path: tuple, leaf: jax.Array, layer: int) -> jax.Array:
        leaf, names = leaf[layer], tuple(key.key for key in path)
        if names not in contracted:
            return leaf
        return leaf.reshape(math.prod(leaf.shape[: contracted[names]]), -1).T

    stacked = params["decoder"]["layers"]
    layers = tuple(
        jax.tree_util.tree_map_with_path(lambda path, leaf, n=number: one(path, leaf, n), stacked)
        for number in range(definition.arch.num_layers)
    )
    table_VE = _head_table(definition, params)
    return {**params, "decoder": {**params["decoder"], "layers": layers, HEAD: table_VE.T}}


def _head_table(definition: ModelDefinition, params: Params) -> jax.Array:
    """The table [V, E] that predictions are products with."""
    if not definition.arch.tied:
        return params["next_token"]["table"]
    stack = "decoder" if definition.arch.has_tokens else "encoder"
    return params[stack]["embeddings"]["tokens"]


def _contracted(definition: ModelDefinition) -> dict[tuple[str, ...], int]:
    """Path of each kernel of a decoder's block -> how many of its axes are inputs."""
    block = nnx.eval_shape(lambda: Block(definition.arch, nnx.Rngs(0)))
    found = nnx.iter_graph(block)
    return {(*path, "kernel"): node.contracted for path, node in found if isinstance(node, Dense)}


class Bound(NamedTuple):
    """A model with its parameters, and the decoder's blocks apart (or None where they are looped over)."""

    model: Model
    blocks: tuple[Block, ...] | None
    head_EV: jax.Array | None = None


def bind(definition: ModelDefinition, params: Params) -> Bound:
    """The model of parameters in the stacked form, or in that of `unroll`."""
    layers = params["decoder"]["layers"]
    if not isinstance(layers, tuple | list):
        return Bound(definition.bind(params), None)
    shapes = definition.shapes["decoder"]["layers"]
    decoder = {name: value for name, value in params["decoder"].items() if name != HEAD}
    model = definition.bind({**params, "decoder": {**decoder, "layers": shapes}})
    graph, state = nnx.split(model.decoder.layers)

    blocks = []
    for layer in layers:
        own = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(own, layer)
        block = nnx.merge(graph, own)
        for path, node in list(nnx.iter_graph(block)):
            if isinstance(node, Dense):
                node.turned = functools.reduce(lambda tree, name: tree[name], path, shapes)["kernel"].shape[1:]
        blocks.append(block)
    return Bound(model, tuple(blocks), params["decoder"][HEAD])


# --- products ---------------------------------------------------------------------------------------------------------


def dense(layer: Dense, x: jax.Array) -> jax.Array:
    """`layer(x)`, also of a layer whose matrix `bind` left as [O, I]."""
    turned = getattr(layer, "turned", None)  # the kernel's own shape then
    shape = layer.kernel.shape if turned is None else turned
    leading, inner, outer = x.shape[: -layer.contracted], shape[: layer.contracted], shape[layer.contracted :]
    x_RI, kernel = x.reshape(-1, math.prod(inner)), layer.kernel[...].astype(layer.dtype)
    if turned is None:
        y_RO = x_RI @ kernel.reshape(math.prod(inner), -1)
    else:
        y_RO = few_rows(kernel, x_RI) if _is_few(x_RI) else x_RI @ kernel.T
    if layer.bias is not None:
        y_RO += over_rows(layer.bias[...].astype(layer.dtype).reshape(-1), y_RO.shape)
    return y_RO.reshape(*leading, *outer)


def few_rows(matrix_OI: jax.Array, x_RI: jax.Array, dtype: Any = None) -> jax.Array:
    """x matrix^T, [R, O], as matrix x^T: that reads the matrix as it lies, once, at up to 3 times the speed on a CPU.

    The barriers keep XLA from turning the product around again.
    """
    x_IR = jax.lax.optimization_barrier(x_RI.T)
    y_OR = jnp.matmul(matrix_OI, x_IR, preferred_element_type=dtype)
    return jax.lax.optimization_barrier(y_OR).T


def _is_few(x_RI: jax.Array) -> bool:
    return len(x_RI) <= FEW_ROWS and jax.default_backend() == "cpu"


def predict(bound: Bound, x_BLD: jax.Array) -> jax.Array:
    """Next-token logits [B, L, V] in float32 after each of some states."""
    projection = bound.model.predict_tokens(x_BLD)
    hidden_BME, table_VE, bias_V = projection
    rows_RE = hidden_BME.reshape(-1, hidden_BME.shape[-1])
    if not _is_few(rows_RE):
        return projection.logits()
    if len(rows_RE) == 1 and bound.head_EV is not None:  # a single row is faster this way round
        table_EV = bound.head_EV.astype(rows_RE.dtype)
        logits_RV = jnp.matmul(rows_RE, table_EV, preferred_element_type=jnp.float32)
    else:
        logits_RV = few_rows(table_VE.astype(rows_RE.dtype), rows_RE, jnp.float32)
    logits_RV = logits_RV if bias_V is None else logits_RV + bias_V
    return logits_RV.reshape(*hidden_BME.shape[:2], -1)


def feed_forward(layer: FeedForward, x_BLD: jax.Array) -> jax.Array:
    """`layer(x)` without dropout. Few rows stay columns from one product to the next."""
    arch, x_RD = layer.arch, x_BLD.reshape(-1, x_BLD.shape[-1])
    if getattr(layer.up, "turned", None) is None or not _is_few(x_RD):
        inner_BLF = dense(layer.up, x_BLD)
        inner_BLF = _activated(arch, inner_BLF, dense(layer.gate, x_BLD) if arch.gated else None)
        return dense(layer.down, constrain(inner_BLF, "batch", None, "act_mlp"))
    x_DR = jax.lax.optimization_barrier(x_RD.T)
    inner_FR = _activated(arch, _columns(layer.up, x_DR), _columns(layer.gate, x_DR) if arch.gated else None)
    y_DR = jax.lax.optimization_barrier(_columns(layer.down, inner_FR))
    return y_DR.T.reshape(x_BLD.shape)


def _activated(arch: Any, up: jax.Array, gate: jax.Array | None) -> jax.Array:
    return activation(arch.activation, up) if gate is None else activation(arch.activation, gate) * up


def _columns(layer: Dense, x_IR: jax.Array) -> jax.Array:
    """The layer's output [O, R] of columns [I, R]."""
    y_OR = layer.kernel[...].astype(layer.dtype) @ x_IR
    return y_OR if layer.bias is None else y_OR + layer.bias[...].astype(layer.dtype)[:, None]
