"""A parameter layout for decoding with few rows, and next-token predictions from it.

In small batches the time per token is that of reading all weights. On a CPU a product with few rows is up to 3 times as fast if the matrix
is the first factor and is read in memory order: a matrix [outputs, inputs] times columns [inputs, R]. The matrices are copied in the type
that they are multiplied in, so that in bfloat16 a step reads half as many bytes.

Legend: lm_research/models/__init__.py.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm_research.models.activations import capped
from lm_research.models.architecture import Architecture
from lm_research.models.block import Block, block_parts
from lm_research.models.cpu_products import few_rows, is_few
from lm_research.models.definition import ModelDefinition, Params
from lm_research.models.heads import Model
from lm_research.models.layer_plan import LayerSlot, layer_slots
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.layers import Dense

HEAD = "head"  # name of the copy of the output table among the parameters of `unroll`


def unroll(definition: ModelDefinition, params: Params) -> Params:
    """Parameters with the decoder's layers unstacked, their matrices as [outputs, inputs], and another copy of the output table.

    The table is [V, E] in bfloat16, or else [E, V]. These arrays are copies in the compute type; the others are shared. `bind` takes either form. Call this function inside jit.
    """
    arch, layers = definition.arch, params["decoder"]["layers"]

    def unstack(spec: LayerSpec, slot: LayerSlot) -> Params:
        num_inputs, stacked = _num_input_axes(arch, spec), layers[slot.stack] if slot.stack else layers

        def convert(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            leaf, names = leaf[slot.row], tuple(key.key for key in path)
            if names not in num_inputs:
                return leaf
            return leaf.reshape(math.prod(leaf.shape[: num_inputs[names]]), -1).T.astype(arch.compute_dtype)

        return jax.tree_util.tree_map_with_path(convert, stacked)

    unstacked = tuple(map(unstack, arch.layer_specs, layer_slots(arch)))
    table_VE = _head_table(definition, params)
    head = table_VE.astype(arch.compute_dtype) if arch.compute_dtype == jnp.bfloat16 else table_VE.T
    return {**params, "decoder": {**params["decoder"], "layers": unstacked, HEAD: head}}


def _head_table(definition: ModelDefinition, params: Params) -> jax.Array:
    """The output table [V, E], the embedding table if it is tied."""
    if not definition.arch.tied:
        return params["next_token"]["table"]
    stack = "decoder" if definition.arch.has_tokens else "encoder"
    return params[stack]["embeddings"]["tokens"]


def _num_input_axes(arch: Architecture, spec: LayerSpec) -> dict[tuple[str, ...], int]:
    """Path of each kernel of a block -> number of its input axes."""
    nodes = nnx.iter_graph(nnx.merge(*block_parts(arch, spec)))
    return {(*map(str, path), "kernel"): len(node.inputs) for path, node in nodes if isinstance(node, Dense)}


class BoundModel(NamedTuple):
    """A model with its parameters, and the decoder's blocks and table if they are those of `unroll` (else None)."""

    model: Model
    blocks: tuple[Block, ...] | None
    head: jax.Array | None = None


def bind(definition: ModelDefinition, params: Params) -> BoundModel:
    """Put parameters into the model, in the stacked form or in that of `unroll`."""
    layers = params["decoder"]["layers"]
    if not isinstance(layers, tuple | list):
        return BoundModel(definition.bind(params), None)
    shapes = definition.shapes["decoder"]["layers"]
    decoder = {name: value for name, value in params["decoder"].items() if name != HEAD}
    model = definition.bind({**params, "decoder": {**decoder, "layers": shapes}})
    blocks = []
    for spec, layer in zip(definition.arch.layer_specs, layers, strict=True):
        graph, shapes = block_parts(definition.arch, spec)
        state = jax.tree.map(lambda leaf: leaf, shapes)  # a copy of the structure
        nnx.replace_by_pure_dict(state, layer)
        block = nnx.merge(graph, state)
        for _, node in list(nnx.iter_graph(block)):
            if isinstance(node, Dense):
                node.outputs_first = True
        blocks.append(block)
    return BoundModel(model, tuple(blocks), params["decoder"][HEAD])


def predict(bound: BoundModel, x_BLD: jax.Array) -> jax.Array:
    """Next-token logits [B, L, V] in float32 for final states."""
    projection = bound.model.predict_tokens(x_BLD)
    hidden_BME, table_VE, bias_V, cap = projection
    rows_RE = hidden_BME.reshape(-1, hidden_BME.shape[-1])
    if not is_few(rows_RE):
        return projection.logits()
    if bound.head is not None and bound.head.dtype == jnp.bfloat16:
        logits_RV = few_rows(bound.head, rows_RE, jnp.float32)
    elif bound.head is not None and len(rows_RE) == 1:  # for a single row the transposed table is faster
        logits_RV = jnp.matmul(rows_RE, bound.head, preferred_element_type=jnp.float32)
    else:
        logits_RV = few_rows(table_VE.astype(rows_RE.dtype), rows_RE, jnp.float32)
    logits_RV = logits_RV if bias_V is None else logits_RV + bias_V
    return capped(logits_RV, cap).reshape(*hidden_BME.shape[:2], -1)
