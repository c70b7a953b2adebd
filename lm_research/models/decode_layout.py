"""A decoder's parameters laid out for few rows, and predictions from them.

Weights are read once for each new token, which is all that costs time in small batches. On a CPU a product with few rows is up to
3 times as fast when it reads the matrix in the order in which it lies and has it first: matrix [O, I] times columns [I, R].

Legend: B batch, L length, M places that are predicted, R rows (B x L), I and O inputs and outputs of a matrix, D model width, F
feed-forward width, E width of the token table, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm_research.models.architecture import Architecture
from lm_research.models.block import Block, block_parts
from lm_research.models.definition import ModelDefinition, Params
from lm_research.models.heads import Model
from lm_research.models.layer_plan import LayerSlot, layer_slots
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.layers import Dense, capped, few_rows, is_few

HEAD = "head"  # name of the table of predictions among the parameters of `unroll`


def unroll(definition: ModelDefinition, params: Params) -> Params:
    """Parameters with the decoder's layers apart, their matrices as [O, I], and the table of predictions as [E, V] too.

    These are copies; the rest is shared.

    `bind` takes either form. Run it inside jit.
    """
    arch, layers = definition.arch, params["decoder"]["layers"]

    def one(spec: LayerSpec, place: LayerSlot) -> Params:
        contracted, stacked = _contracted(arch, spec), layers[place.stack] if place.stack else layers

        def lay(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            leaf, names = leaf[place.row], tuple(key.key for key in path)
            if names not in contracted:
                return leaf
            return leaf.reshape(math.prod(leaf.shape[: contracted[names]]), -1).T

        return jax.tree_util.tree_map_with_path(lay, stacked)

    apart = tuple(map(one, arch.layer_specs, layer_slots(arch)))
    table_VE = _head_table(definition, params)
    return {**params, "decoder": {**params["decoder"], "layers": apart, HEAD: table_VE.T}}


def _head_table(definition: ModelDefinition, params: Params) -> jax.Array:
    """The table [V, E] that predictions are products with."""
    if not definition.arch.tied:
        return params["next_token"]["table"]
    stack = "decoder" if definition.arch.has_tokens else "encoder"
    return params[stack]["embeddings"]["tokens"]


def _contracted(arch: Architecture, spec: LayerSpec) -> dict[tuple[str, ...], int]:
    """Path of each kernel of a block -> how many of its axes are inputs."""
    found = nnx.iter_graph(nnx.merge(*block_parts(arch, spec)))
    return {(*map(str, path), "kernel"): len(node.inputs) for path, node in found if isinstance(node, Dense)}


class BoundModel(NamedTuple):
    """A model with its parameters, and the decoder's blocks apart (or None where they are looped over)."""

    model: Model
    blocks: tuple[Block, ...] | None
    head_EV: jax.Array | None = None


def bind(definition: ModelDefinition, params: Params) -> BoundModel:
    """The model of parameters in the stacked form, or in that of `unroll`."""
    layers = params["decoder"]["layers"]
    if not isinstance(layers, tuple | list):
        return BoundModel(definition.bind(params), None)
    shapes = definition.shapes["decoder"]["layers"]
    decoder = {name: value for name, value in params["decoder"].items() if name != HEAD}
    model = definition.bind({**params, "decoder": {**decoder, "layers": shapes}})
    blocks = []
    for spec, layer in zip(definition.arch.layer_specs, layers, strict=True):
        graph, shapes = block_parts(definition.arch, spec)
        own = jax.tree.map(lambda leaf: leaf, shapes)
        nnx.replace_by_pure_dict(own, layer)
        block = nnx.merge(graph, own)
        for _, node in list(nnx.iter_graph(block)):
            if isinstance(node, Dense):
                node.outputs_first = True
        blocks.append(block)
    return BoundModel(model, tuple(blocks), params["decoder"][HEAD])


def predict(bound: BoundModel, x_BLD: jax.Array) -> jax.Array:
    """Next-token logits [B, L, V] in float32 after each of some states."""
    projection = bound.model.predict_tokens(x_BLD)
    hidden_BME, table_VE, bias_V, cap = projection
    rows_RE = hidden_BME.reshape(-1, hidden_BME.shape[-1])
    if not is_few(rows_RE):
        return projection.logits()
    if len(rows_RE) == 1 and bound.head_EV is not None:  # a single row is faster this way round
        table_EV = bound.head_EV.astype(rows_RE.dtype)
        logits_RV = jnp.matmul(rows_RE, table_EV, preferred_element_type=jnp.float32)
    else:
        logits_RV = few_rows(table_VE.astype(rows_RE.dtype), rows_RE, jnp.float32)
    logits_RV = logits_RV if bias_V is None else logits_RV + bias_V
    return capped(logits_RV, cap).reshape(*hidden_BME.shape[:2], -1)
