"""Scaled dot-product attention (Vaswani et al. 2017) over padded or packed sequences.

Legend: lm_research/models/__init__.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm_research.models.activations import activation, capped
from lm_research.models.architecture import Architecture
from lm_research.models.attention.block_sums import BlockSums
from lm_research.models.attention.cache import LayerCache
from lm_research.models.attention.flash import flash_attend
from lm_research.models.attention.mask import MASKED, AttentionMask
from lm_research.models.attention.ring import ring_attend
from lm_research.models.attention.tpu import tile_heads, tpu_attend
from lm_research.models.cpu_products import FEW_ROWS, bfloat16_product, multiplies_bfloat16, transposed
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.layers import Dense, Norm, dropout, make_param, norm, split_key
from lm_research.models.positions import by_distance, distance_table, embedded_distances, shifted_rows
from lm_research.models.rotary import Rotation, make_rotation, rotary_frequencies, rotary_scale, rotate
from lm_research.models.span_convolution import SpanConvolution
from lm_research.parallel.hardware import platform
from lm_research.parallel.rules import constrain, length_parts

# The projections of the embeddings of distances.
POSITION_PROJECTIONS = ("position_query", "position_key")
# Length from which the GPU kernels are faster, and the widest heads that fit in registers (experiments/benchmarks/attention).
FLASH_LENGTH, WIDEST_HEAD = 128, 128
# Length from which the TPU kernels are used, which compute in blocks of 128 positions; not measured.
TPU_LENGTH = 64


def use_fused_kernel(
    arch: Architecture, spec: LayerSpec, lengths: Sequence[int], has_prefix: bool, device: str = ""
) -> bool:
    """Whether attention runs in kernels that do not store scores.

    Args:
      arch: the stack's architecture.
      spec: the layer's spec.
      lengths: lengths of queries and keys.
      has_prefix: whether the mask has prefixes.
      device: "cpu", "gpu" or "tpu"; empty is `platform()`.
    """
    if spec.positions == "disentangled" or spec.block_sums or spec.attention == "blocks" or arch.merged_attention:
        return False
    if spec.global_tokens and has_prefix:
        return False
    device, shortest = device or platform(), min(lengths)
    if device == "tpu":
        return arch.attention_backend == "flash" or arch.attention_backend == "auto" and shortest >= TPU_LENGTH
    if spec.by_distance or spec.window_ahead >= 0 or spec.score_cap:
        return False
    if arch.attention_backend == "auto":
        fast = device == "gpu" and shortest >= FLASH_LENGTH and arch.compute_dtype.itemsize == 2
        return fast and spec.head_size <= WIDEST_HEAD
    return arch.attention_backend == "flash"


def dot_product_attention(
    query_BLHK: jax.Array,
    key_BGSK: jax.Array,
    value_BGSK: jax.Array,
    bias_BHLS: jax.Array,
    scale: float | jax.Array,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    probs: list[jax.Array] | None = None,
    score_cap: float = 0.0,
) -> jax.Array:
    """Compute softmax(cap(scale q k^T) + bias) v with the softmax in float32: [B, L, H, K] in the queries' type.

    Heads of keys and values come before positions: products over contiguous [S, K] matrices are 10 to 25% faster on a CPU. H / G query
    heads share a key/value head, which is not copied; keys and values may merge batch and heads into one axis, [B x G, S, K].

    Args:
      query_BLHK: queries.
      key_BGSK: keys.
      value_BGSK: values.
      bias_BHLS: added to the scores (mask, relative positions), float32; B and H may be 1.
      scale: factor on the scores.
      dropout_rate: dropout on the probabilities.
      dropout_key: PRNG key for dropout; None disables it.
      probs: list that collects the probabilities [B, H, L, S] before dropout.
      score_cap: soft cap c of the scores, c tanh(score / c); 0 for none.
    """
    batch, length, heads, width = query_BLHK.shape
    front, slots = key_BGSK.shape[:-2], key_BGSK.shape[-2]
    groups = front[0] // batch if len(front) == 1 else front[1]
    query = (query_BLHK.swapaxes(1, 2) * scale).reshape(*front, heads // groups * length, width)
    # A few queries would not pay for a transposed copy of the keys.
    is_bfloat16 = multiplies_bfloat16(jnp.result_type(query, key_BGSK, value_BGSK)) and query.shape[-2] > FEW_ROWS
    if is_bfloat16:
        scores = bfloat16_product(query, transposed(key_BGSK))
    else:
        scores = jnp.einsum("...QK,...SK->...QS", query, key_BGSK, preferred_element_type=jnp.float32)
    scores_BHLS = capped(scores.reshape(batch, heads, length, slots), score_cap) + bias_BHLS
    probs_BHLS = jax.nn.softmax(scores_BHLS, axis=-1)
    if probs is not None:
        probs.append(probs_BHLS)
    probs_BHLS = dropout(probs_BHLS.astype(query_BLHK.dtype), dropout_rate, dropout_key)
    probs_QS = probs_BHLS.reshape(scores.shape)
    mixed = bfloat16_product(probs_QS, value_BGSK) if is_bfloat16 else probs_QS @ value_BGSK
    mixed = mixed.astype(query_BLHK.dtype)
    return mixed.reshape(batch, heads, length, -1).swapaxes(1, 2)


def reference_attention(
    query_BLHK: jax.Array,
    key_BSGK: jax.Array,
    value_BSGK: jax.Array,
    bias_BHLS: jax.Array,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    scale: float | jax.Array | None = None,
    score_cap: float = 0.0,
) -> jax.Array:
    """The reference that kernels are tested against: `dot_product_attention` of keys and values [B, S, G, K].

    `scale` is 1 / sqrt(K) if it is None.
    """
    scale = query_BLHK.shape[-1] ** -0.5 if scale is None else scale
    key_BGSK, value_BGSK, rate = key_BSGK.swapaxes(1, 2), value_BSGK.swapaxes(1, 2), dropout_rate
    return dot_product_attention(query_BLHK, key_BGSK, value_BGSK, bias_BHLS, scale, rate, dropout_key, None, score_cap)


def blockwise_attention(
    query_BLHK: jax.Array,
    key_BSGK: jax.Array,
    value_BSGK: jax.Array,
    mask: AttentionMask,
    scale: float | jax.Array,
    dropout_rate: float,
    dropout_key: jax.Array | None,
    score_cap: float = 0.0,
    rotation: Rotation | None = None,
) -> jax.Array:
    """Attention a block of scores at a time, [B, L, H, K]: in a ring if devices divide the positions, else in the platform's kernels.

    A rotation is that of `kernel_rotation`.
    """
    ring = length_parts(query_BLHK.shape[1]) > 1
    if platform() == "tpu" and not ring:
        options: Any = dict(dropout_rate=dropout_rate, dropout_key=dropout_key, score_cap=score_cap, rotation=rotation)
        return tpu_attend(query_BLHK, key_BSGK, value_BSGK, mask, scale, **options)
    assert rotation is None
    copies = query_BLHK.shape[2] // key_BSGK.shape[2]
    key, value = (jnp.repeat(x, copies, axis=2) if copies > 1 else x for x in (key_BSGK, value_BSGK))
    if ring:
        return ring_attend(query_BLHK * scale, key, value, mask, dropout_rate, dropout_key, score_cap)
    return flash_attend(query_BLHK, key, value, mask, scale, dropout_rate, dropout_key)


def kernel_rotation(spec: LayerSpec, positions_BL: jax.Array, length: jax.Array | None) -> Rotation | None:
    """The rotation that a layer's kernels apply to queries and keys; None if they are rotated before, or not at all.

    TPU kernels rotate what they have read, which saves reading and writing queries and keys once more. Arguments are those of `Attention`.
    """
    if platform() != "tpu" or spec.positions != "rotary" or spec.rotary_values:
        return None
    frequency, scale = _frequencies(spec, positions_BL, length), rotary_scale(dict(spec.rotary_scaling))
    heads = tile_heads(spec.head_size)
    return make_rotation(positions_BL, frequency, spec.head_size, heads, spec.rotary_interleaved, scale)


def _frequencies(spec: LayerSpec, positions_BL: jax.Array, length: jax.Array | None) -> np.ndarray | jax.Array:
    """The frequencies of a layer's rotations."""
    if length is None and spec.rotary_by_length:
        length = positions_BL.max() + 1
    return rotary_frequencies(spec.rotary_width, spec.rotary_theta, dict(spec.rotary_scaling), length)


class Memory(NamedTuple):
    """Further states in the same softmax, the encoder's or sums of blocks: a bias [B, 1 or H, L, S] or [B, 1, 1, S], and states [B, S, D] or their keys and values."""

    bias_BHLS: jax.Array
    x_BSD: jax.Array | None
    cache: LayerCache | None = None

    @property
    def length(self) -> int:
        """S."""
        return self.bias_BHLS.shape[-1]


class Distances(NamedTuple):
    """The distances that "disentangled" scores depend on.

    Attributes:
      table_RD: embedding of each row of the table.
      rows_BLS: the table's row for each query and key; None where queries and keys are at the same positions 0 to L - 1.
      max_distance: of `embedded_distances`.
    """

    table_RD: jax.Array
    rows_BLS: jax.Array | None
    max_distance: int


class GlobalTokens(NamedTuple):
    """Positions with global attention: above 0 in `chosen_BL`, and the mask of their attention to all positions."""

    chosen_BL: jax.Array
    mask: jax.Array | AttentionMask


class Attention(nnx.Module):
    """Multi-head self-attention, or cross-attention (`cross`) to the states of `arch.encoder`."""

    def __init__(self, arch: Architecture, spec: LayerSpec, rngs: nnx.Rngs, cross: bool = False) -> None:
        spec = spec.across if cross else spec
        width = [(arch.hidden_size, "embed")]
        memory = [(arch.memory_width, "embed")] if cross else width
        heads = [(spec.num_heads, "heads"), (spec.head_size, None)]
        kv_heads = [(spec.num_kv_heads, "heads"), (spec.head_size, None)]
        self.query = Dense(width, heads, arch, rngs, bias=spec.query_bias)
        self.key = Dense(memory, kv_heads, arch, rngs, bias=spec.key_bias)
        self.value = Dense(memory, kv_heads, arch, rngs, bias=spec.value_bias)
        outputs = [(spec.num_heads * 2, "heads"), heads[1]] if spec.span_conv_width else heads
        self.output = Dense(outputs, width, arch, rngs, std=arch.residual_init_std or None, bias=spec.output_bias)
        if spec.span_conv_width:
            self.span_convolution = SpanConvolution(arch, spec, rngs)
        if spec.position_projections and "query" in spec.position_terms:
            self.position_key = Dense(width, heads, arch, rngs, bias=spec.key_bias)
        if spec.position_projections and "key" in spec.position_terms:
            self.position_query = Dense(width, heads, arch, rngs, bias=spec.query_bias)
        if spec.global_tokens:
            self.global_query = Dense(width, heads, arch, rngs, bias=spec.query_bias)
            self.global_key = Dense(width, kv_heads, arch, rngs, bias=spec.key_bias)
            self.global_value = Dense(width, kv_heads, arch, rngs, bias=spec.value_bias)
        if spec.block_sums:
            self.block_norm = norm(arch)
        if spec.own_relative_table:
            self.relative_bias = make_param(rngs, (arch.relative_buckets, spec.num_heads), (None, "heads"), arch)
        if spec.mix_norm:
            self.mix_norm = norm(arch, spec.num_heads * spec.head_size)
        if spec.attention_gate:
            self.gate = Dense(width, heads, arch, rngs, bias=spec.value_bias)
        if spec.query_key_norm != "none":
            all_heads = spec.query_key_norm == "projection"
            self.query_norm = norm(arch, spec.head_size * (spec.num_heads if all_heads else 1))
            self.key_norm = norm(arch, spec.head_size * (spec.num_kv_heads if all_heads else 1))
        self.arch, self.spec = arch, spec

    def __call__(
        self,
        x_BLD: jax.Array,
        mask: jax.Array | AttentionMask,
        cache: LayerCache | None = None,
        *,
        memory_BSD: jax.Array | None = None,
        positions_BL: jax.Array | None = None,
        layer: jax.Array | int = 0,
        dropout_key: jax.Array | None = None,
        probs: list[jax.Array] | None = None,
        merged: Memory | None = None,
        distances: Distances | None = None,
        buckets_BLS: jax.Array | None = None,
        global_tokens: GlobalTokens | None = None,
        length: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
        block_sums: BlockSums | None = None,
        rotation: Rotation | None = None,
    ) -> jax.Array:
        """Attend, [B, L, D].

        Args:
          x_BLD: states that the queries are computed from.
          mask: bias added to the scores [B, H, L, S], where B and H may be 1; or an AttentionMask, which selects `blockwise_attention`.
          cache: keys and values of earlier positions, to which those of x are added; or, without slots, the encoder's.
          memory_BSD: states that keys and values are computed from without a cache; None is x.
          positions_BL: rotary positions; None counts from 0.
          layer: index of the layer, for `scale_by_layer`.
          dropout_key: PRNG key for dropout; None disables it.
          probs: list that collects the probabilities [B, H, L, S].
          merged: further keys and values, which follow the others in the same softmax.
          distances: for "disentangled" positions.
          buckets_BLS: rows of the layer's own table of relative positions; None for those of whole sequences.
          global_tokens: the positions with global attention, for layers that have them.
          length: number of positions in use, for `rotary_by_length`.
          segments_BL: segment of each position, for convolutions and attention to "blocks".
          block_sums: the blocks whose sums are `merged`, for layers that have them.
          rotation: that of `kernel_rotation`, for an AttentionMask.
        """
        spec = self.spec
        if block_sums is not None:
            sums_BGD = jnp.einsum("BLD,BLG->BGD", x_BLD, block_sums.members_BLG.astype(x_BLD.dtype))
            merged = Memory(block_sums.bias_BHLG, self.block_norm(sums_BGD))
        if spec.positions == "rotary" and positions_BL is None:
            positions_BL = jnp.arange(x_BLD.shape[1])[None]
        positions_BL = None if rotation is not None else positions_BL
        query_BLHK = self._project(self.query, x_BLD)
        if spec.query_key_norm != "none":
            query_BLHK = self._normalized(self.query_norm, query_BLHK)
        query_BLHK = self._rotated(query_BLHK, positions_BL, length)
        scale: float | jax.Array = spec.score_scale
        if spec.scale_by_layer:
            scale = scale / (layer + 1)
        if spec.position_terms:
            dropout_key, table_key = split_key(dropout_key, 2)
        dropout_args = (self.arch.attention_dropout_rate, dropout_key)
        if spec.own_relative_table:
            mask = self._with_distances(mask, x_BLD.shape[1], buckets_BLS)
        if cache is None or cache.slots is not None:
            key, value = self.keys_and_values(x_BLD if memory_BSD is None else memory_BSD, positions_BL, length)
            if cache is None and merged is None and not spec.position_terms:
                mixed = self._attend(query_BLHK, key, value, mask, scale, *dropout_args, probs, rotation)
                if global_tokens is not None and spec.global_tokens:
                    mixed = self._with_global(x_BLD, mixed, global_tokens, positions_BL, scale, *dropout_args, probs)
                if spec.has_sparse_blocks(x_BLD.shape[1]):  # padding has no keys
                    assert segments_BL is not None
                    mixed = jnp.where(segments_BL[..., None, None] > 0, mixed, 0)
                return self._projected(mixed, x_BLD, segments_BL)
            key, value = (key.swapaxes(1, 2), value.swapaxes(1, 2)) if cache is None else cache.update(key, value)
        else:
            key, value = cache.key, cache.value
        assert not isinstance(mask, AttentionMask)
        if merged is not None:
            key, value, mask = self._with_memory(key, value, mask, merged)
        if spec.position_terms:
            assert distances is not None
            terms_BHLS = scale * self._distance_scores(query_BLHK, key, distances, table_key)
            # Without a visible key all scores are equal, and constant for the gradient too.
            visible = mask > MASKED / 2
            query_BLHK = jnp.where(visible.any(-1).swapaxes(1, 2)[..., None], query_BLHK, 0)
            mask = jnp.where(visible, mask + terms_BHLS, mask)
        mixed = dot_product_attention(query_BLHK, key, value, mask, scale, *dropout_args, probs, spec.score_cap)
        return self._projected(mixed, x_BLD)

    def _projected(self, mixed_BLHK: jax.Array, x_BLD: jax.Array, segments_BL: jax.Array | None = None) -> jax.Array:
        """The output [B, L, D] of mixed values, after the norm and the gate that the layer's spec defines."""
        spec = self.spec
        if spec.mix_norm:
            mixed_BLHK = self.mix_norm(mixed_BLHK.reshape(*mixed_BLHK.shape[:2], -1)).reshape(mixed_BLHK.shape)
        if spec.attention_gate:
            gate_BLHK = activation(spec.attention_gate, self.gate(x_BLD))
            mixed_BLHK = mixed_BLHK * constrain(gate_BLHK, "batch", "length", "act_heads", None)
        if spec.span_conv_width:
            assert segments_BL is not None
            convolved_BLHK = self.span_convolution(x_BLD, self._project(self.query, x_BLD), segments_BL)
            mixed_BLHK = jnp.concatenate([mixed_BLHK, convolved_BLHK], axis=2)
        return self.output(mixed_BLHK)

    def _attend(
        self,
        query_BLHK: jax.Array,
        key_BSGK: jax.Array,
        value_BSGK: jax.Array,
        mask: jax.Array | AttentionMask,
        scale: float | jax.Array,
        dropout_rate: float,
        dropout_key: jax.Array | None,
        probs: list[jax.Array] | None,
        rotation: Rotation | None = None,
    ) -> jax.Array:
        """Attend as the type of the mask defines, [B, L, H, K]."""
        spec, dropout_args = self.spec, (dropout_rate, dropout_key)
        if not isinstance(mask, AttentionMask):
            key, value = key_BSGK.swapaxes(1, 2), value_BSGK.swapaxes(1, 2)
            return dot_product_attention(query_BLHK, key, value, mask, scale, *dropout_args, probs, spec.score_cap)
        options: Any = (*dropout_args, spec.score_cap, rotation)
        return blockwise_attention(query_BLHK, key_BSGK, value_BSGK, mask, scale, *options)

    def _with_global(
        self,
        x_BLD: jax.Array,
        mixed_BLHK: jax.Array,
        global_tokens: GlobalTokens,
        positions_BL: jax.Array | None,
        scale: float | jax.Array,
        dropout_rate: float,
        dropout_key: jax.Array | None,
        probs: list[jax.Array] | None,
    ) -> jax.Array:
        """Replace the results of the positions with global attention by those of their own projections."""
        query, key = (
            self._rotated(self._project(one, x_BLD), positions_BL) for one in (self.global_query, self.global_key)
        )
        pair, chosen_BL = (key, self._project(self.global_value, x_BLD)), global_tokens.chosen_BL > 0
        inner_key = None if dropout_key is None else jax.random.fold_in(dropout_key, 1)
        globally = self._attend(query, *pair, global_tokens.mask, scale, dropout_rate, inner_key, probs)
        if probs is not None:
            own, others = probs.pop(), probs.pop()
            probs.append(jnp.where(chosen_BL[:, None, :, None], own, others))
        return jnp.where(chosen_BL[..., None, None], globally, mixed_BLHK)

    def _with_distances(
        self, mask: jax.Array | AttentionMask, length: int, buckets_BLS: jax.Array | None
    ) -> jax.Array | AttentionMask:
        """Add the layer's own bias by distance to a mask."""
        if buckets_BLS is not None:
            assert not isinstance(mask, AttentionMask)
            bias_BLSH = self.relative_bias[...].astype(jnp.float32)[buckets_BLS]
            return mask + jnp.moveaxis(bias_BLSH, -1, 1)
        arch = self.arch
        table_HX = distance_table(self.relative_bias[...], length, arch.relative_max_distance, not arch.causal)
        if isinstance(mask, AttentionMask):
            return mask._replace(distances_HX=table_HX)
        return mask + by_distance(table_HX, length)[None]

    def _with_memory(
        self, key_BGSK: jax.Array, value_BGSK: jax.Array, bias_BHLS: jax.Array, memory: Memory
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Append the keys, values and biases of an encoder's states, which are not rotated."""
        if memory.cache is None:
            assert memory.x_BSD is not None
            pair = tuple(x.swapaxes(1, 2) for x in self.keys_and_values(memory.x_BSD))
        else:
            pair = memory.cache.key, memory.cache.value
        front = key_BGSK.shape[:-2]  # the cache may merge batch and heads into one axis
        own = key_BGSK, value_BGSK
        keys, values = (
            jnp.concatenate([one, x.reshape(*front, *x.shape[-2:])], -2) for one, x in zip(own, pair, strict=True)
        )
        axes = [max(sizes) for sizes in zip(bias_BHLS.shape[:-1], memory.bias_BHLS.shape[:-1], strict=True)]
        biases = (jnp.broadcast_to(bias, (*axes, bias.shape[-1])) for bias in (bias_BHLS, memory.bias_BHLS))
        return keys, values, jnp.concatenate([*biases], -1)

    def keys_and_values(
        self, x_BSD: jax.Array, positions_BS: jax.Array | None = None, length: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, S, G, K], normalized and rotated as the layer's spec defines; without positions they are not rotated."""
        key_BSGK, value_BSGK = self._project(self.key, x_BSD), self._project(self.value, x_BSD)
        if self.spec.query_key_norm != "none":
            key_BSGK = self._normalized(self.key_norm, key_BSGK)
        if self.spec.rotary_values:
            value_BSGK = self._rotated(value_BSGK, positions_BS, length)
        return self._rotated(key_BSGK, positions_BS, length), value_BSGK

    def _distance_scores(
        self, query_BLHK: jax.Array, key: jax.Array, distances: Distances, dropout_key: jax.Array | None
    ) -> jax.Array:
        """The terms that depend on the distance, [B, H, L, S] in float32 before scaling (He et al. 2020, equation 4)."""
        batch, length, heads, width = query_BLHK.shape
        key_BHSK = key.reshape(batch, heads, -1, width)
        table_RD = dropout(distances.table_RD.astype(query_BLHK.dtype), self.arch.dropout_rate, dropout_key)
        own, terms, scores = self.spec.position_projections, self.spec.position_terms, jnp.zeros((), jnp.float32)
        options: dict[str, Any] = dict(preferred_element_type=jnp.float32)

        def by_distance(x_RHK: jax.Array, first: int) -> jax.Array:
            """The rows for distances from `first` (1 - L or L - 1) to its negative; a one-hot product, as in `relative_bias`."""
            distance_X = np.arange(1 - length, length) * (1 if first < 0 else -1)
            row_X = embedded_distances(distance_X, len(x_RHK), distances.max_distance)
            return jnp.einsum("XR,RHK->XHK", jax.nn.one_hot(row_X, len(x_RHK), dtype=x_RHK.dtype), x_RHK)

        if "query" in terms:
            position_RHK = (self.position_key if own else self.key)(table_RD)
            if distances.rows_BLS is None:
                position_XHK = by_distance(position_RHK, length - 1)
                scores += shifted_rows(jnp.einsum("BLHK,XHK->BHLX", query_BLHK, position_XHK, **options))
            else:
                scores_BLHR = jnp.einsum("BLHK,RHK->BLHR", query_BLHK, position_RHK, **options)
                scores += jnp.take_along_axis(scores_BLHR, distances.rows_BLS[:, :, None], axis=-1).swapaxes(1, 2)
        if "key" in terms:
            position_RHK = (self.position_query if own else self.query)(table_RD)
            if distances.rows_BLS is None:
                position_XHK = by_distance(position_RHK, 1 - length)
                by_key = shifted_rows(jnp.einsum("BHSK,XHK->BHSX", key_BHSK, position_XHK, **options))
                scores += by_key.swapaxes(2, 3)
            else:
                position_BLSHK = position_RHK[distances.rows_BLS]
                scores += jnp.einsum("BHSK,BLSHK->BHLS", key_BHSK, position_BLSHK, **options)
        return scores

    def _project(self, projection: Dense, x_BLD: jax.Array) -> jax.Array:
        x_BLHK, bound = projection(x_BLD), self.spec.projection_clip
        x_BLHK = jnp.clip(x_BLHK, -bound, bound) if bound else x_BLHK
        return constrain(x_BLHK, "batch", "length", "act_heads", None)

    def _normalized(self, norm: Norm, x_BLHK: jax.Array) -> jax.Array:
        if self.spec.query_key_norm == "head":
            return norm(x_BLHK)
        return norm(x_BLHK.reshape(*x_BLHK.shape[:2], -1)).reshape(x_BLHK.shape)

    def _rotated(self, x_BLHK: jax.Array, positions_BL: jax.Array | None, length: jax.Array | None = None) -> jax.Array:
        spec = self.spec
        if spec.positions != "rotary" or positions_BL is None:
            return x_BLHK
        frequency, scale = _frequencies(spec, positions_BL, length), rotary_scale(dict(spec.rotary_scaling))
        return rotate(x_BLHK, positions_BL, frequency, spec.rotary_interleaved, scale)
