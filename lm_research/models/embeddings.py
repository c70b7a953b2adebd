"""Embeddings of tokens, positions and types, the input of a stack of blocks.

Legend: lm_research/models/__init__.py.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm_research.models.architecture import Architecture
from lm_research.models.layers import Dense, broadcast_rows, dropout, make_param, norm, zeros_param
from lm_research.models.positions import sinusoidal
from lm_research.parallel.rules import constrain, per_part


class TokenTable(NamedTuple):
    """A table of token embeddings [V, E], or a copy for each part of the batch, [G, V, E] (training/table_copies.py).

    `own_E` is the vector of the one token that has its own, if there is one.
    """

    rows_VE: jax.Array
    own_E: jax.Array | None = None


class Embeddings(nnx.Module):
    """Token, position and type embeddings, normalized and projected to D if the architecture requires it."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        width = arch.embedding_width
        if arch.has_tokens:  # otherwise the encoder's table is used
            self.tokens = make_param(rngs, (arch.vocab_size, width), ("vocab", "embed"), arch)
            if arch.separate_token >= 0:
                self.own_token = zeros_param((width,), (None,))
        if arch.positions == "learned":
            rows = arch.max_length + arch.position_offset
            self.positions = make_param(rngs, (rows, arch.position_width), (None, "embed"), arch)
        if arch.num_types:
            self.types = make_param(rngs, (arch.num_types, width), (None, "embed"), arch)
        if arch.num_task_types:
            self.task_types = make_param(rngs, (arch.num_task_types, width), (None, "embed"), arch)
        if arch.embedding_norm:
            self.norm = norm(arch, width)
        if arch.embedding_projection:
            bias = not arch.project_tokens
            self.projection = Dense([(width, None)], [(arch.hidden_size, "embed")], arch, rngs, bias=bias)
        self.arch = arch

    def __call__(
        self,
        tokens_BL: jax.Array,
        positions_BL: jax.Array | None,
        types_BL: jax.Array | None,
        dropout_key: jax.Array | None,
        table: TokenTable | None = None,
        task_types_BL: jax.Array | None = None,
    ) -> jax.Array:
        """Embed tokens, [B, L, D]. Arguments are those of Transformer; `table` is the encoder's, if it is shared."""
        arch = self.arch
        table = self.table if arch.has_tokens else table
        assert table is not None
        x_BLE, table_VE = look_up_in_turn(table.rows_VE, tokens_BL, arch.compute_dtype)
        x_BLE = self._without_padding(x_BLE, tokens_BL, arch.frozen_padding)
        if arch.embedding_scale != 1.0:
            scale = arch.embedding_scale
            x_BLE = x_BLE * (float(np.asarray(scale, arch.compute_dtype)) if arch.round_embedding_scale else scale)
        if table.own_E is not None:
            x_BLE = jnp.where((tokens_BL == arch.separate_token)[..., None], table.own_E.astype(x_BLE.dtype), x_BLE)
        if arch.project_tokens:
            x_BLE = self.projection(x_BLE.astype(arch.compute_dtype))
        if not arch.norm_before_positions:
            x_BLE = self._add_positions(x_BLE, tokens_BL, positions_BL)
        if arch.num_types:
            x_BLE += _rows(self.types[...], types_BL)
        if arch.num_task_types:
            x_BLE += _rows(self.task_types[...], task_types_BL)
        if arch.token_types and types_BL is not None:
            types_BLE, table_VE = look_up_in_turn(table_VE, types_BL, arch.compute_dtype)
            x_BLE += types_BLE
        if arch.has_tokens and table_VE is not table.rows_VE:
            self.tokens[...] = table_VE  # what predicts tokens later reads the table behind this look-up
        if arch.embedding_norm:
            x_BLE = self.norm(x_BLE)
        if arch.norm_before_positions:
            x_BLE = self._add_positions(x_BLE, tokens_BL, positions_BL)
        x_BLE = constrain(x_BLE.astype(arch.compute_dtype), "batch", "length", None)
        x_BLE = dropout(x_BLE, arch.dropout_rate, dropout_key)
        return self.projection(x_BLE) if arch.embedding_projection and not arch.project_tokens else x_BLE

    @property
    def table(self) -> TokenTable:
        """The stack's own token table."""
        return TokenTable(self.tokens[...], self.own_token[...] if self.arch.separate_token >= 0 else None)

    def _add_positions(self, x_BLE: jax.Array, tokens_BL: jax.Array, positions_BL: jax.Array | None) -> jax.Array:
        arch, length = self.arch, tokens_BL.shape[1]
        if positions_BL is None and not arch.count_padding:
            real_BL = (tokens_BL != arch.pad_id).astype(jnp.int32)
            positions_BL = jnp.cumsum(real_BL, axis=1) * real_BL - 1
        if arch.positions == "sinusoidal":
            positions_BL = jnp.arange(length)[None] if positions_BL is None else positions_BL
            return x_BLE + self._sinusoidal(positions_BL)
        if arch.positions != "learned":
            return x_BLE
        table = constrain(self.positions[...], None, None)
        if positions_BL is None:
            return x_BLE + broadcast_rows(table[arch.position_offset :][:length], x_BLE.shape)
        frozen = arch.frozen_padding and not arch.count_padding
        rows_BL = positions_BL + arch.position_offset
        return x_BLE + self._without_padding(jnp.take(table, rows_BL, axis=0), rows_BL, frozen)

    def _without_padding(self, x_BLE: jax.Array, rows_BL: jax.Array, frozen: bool) -> jax.Array:
        """Rows of a table as they are; with `frozen`, the row with the index of padding gets no gradient from them."""
        if not frozen or self.arch.pad_id < 0:
            return x_BLE
        return jnp.where((rows_BL == self.arch.pad_id)[..., None], jax.lax.stop_gradient(x_BLE), x_BLE)

    def _sinusoidal(self, positions_BL: jax.Array) -> jax.Array:
        arch = self.arch
        rows_BL = positions_BL + arch.position_offset
        x_BLE = sinusoidal(rows_BL, arch.position_width, arch.last_wavelength)
        return jnp.where(rows_BL[..., None] == arch.pad_id, 0.0, x_BLE) if arch.last_wavelength else x_BLE


def look_up(table_VE: jax.Array, tokens_BL: jax.Array) -> jax.Array:
    """Rows of a token table, [B, L, E]; with copies [G, V, E] each part of the batch reads its own."""
    if table_VE.ndim == 2:
        # Gather whole rows of the table on each device before the look-up: otherwise XLA moves the result instead.
        return jnp.take(constrain(table_VE, "vocab", None), tokens_BL, axis=0)
    return per_part(lambda table_VE, rows, _: jnp.take(table_VE, rows[0], axis=0), table_VE, [tokens_BL])


def look_up_in_turn(table_VE: jax.Array, tokens_BL: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Look up rows, and return the table for whatever reads it next.

    With copies [G, V, E], whose values are numbers of `dtype` (training/table_copies.py), the gradient of these rows is added in place to
    that of the returned table. Two uses of one array would have a gradient of the table's size each, and a pass over both to add them.
    """
    if table_VE.ndim == 2:
        return look_up(table_VE, tokens_BL), table_VE

    def on_part(table_VE: jax.Array, rows: tuple[jax.Array], _: None) -> tuple[jax.Array, jax.Array]:
        x_BLE, table_VE = _take_in_turn(jnp.dtype(dtype), table_VE, rows[0])
        return x_BLE, table_VE[None]

    x_BLE, table_VE = per_part(on_part, table_VE, [tokens_BL])
    return x_BLE, constrain(table_VE, "batch", "vocab", None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _take_in_turn(dtype: np.dtype, table_VE: jax.Array, tokens_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.take(table_VE.astype(dtype), tokens_BL, axis=0).astype(table_VE.dtype), table_VE


def _take_forward(dtype: np.dtype, table_VE: jax.Array, tokens_BL: jax.Array) -> tuple[Any, jax.Array]:
    return _take_in_turn(dtype, table_VE, tokens_BL), tokens_BL


def _take_backward(dtype: np.dtype, tokens_BL: jax.Array, cotangents: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
    rows_BLE, table_VE = cotangents
    return table_VE.at[tokens_BL].add(rows_BLE), None


_take_in_turn.defvjp(_take_forward, _take_backward)


def _rows(table_TE: jax.Array, types_BL: jax.Array | None) -> jax.Array:
    """Rows of a small table; None is row 0 everywhere."""
    # A product with one-hot rows: its gradient is a small matrix product instead of a scatter.
    return jax.nn.one_hot(0 if types_BL is None else types_BL, len(table_TE), dtype=jnp.float32) @ table_TE
