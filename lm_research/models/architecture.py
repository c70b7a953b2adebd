"""What a model is, in numbers: everything the modules need to build themselves.

Families (models/families/) translate a run's `ModelConfig`, or a Hugging Face config.json, into one of these; the
modules know no family's name.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp

from lm_research.models.layer_spec import LayerSpec, nested


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Shape and choices of one Transformer stack.

    Attributes:
      vocab_size: V, rows of the token table.
      hidden_size: D, width of the residual stream.
      num_layers: N blocks.
      num_heads: H query heads.
      intermediate_size: F.
      max_length: positions it can number; 0 where nothing limits them.

      causal: whether a position sees only itself and earlier ones.
      encoder: the stack whose output this one also attends to, which makes it the decoder of an encoder-decoder.
      shared_tokens: whether the two share the encoder's token table.
      memory_projection: whether the encoder's states are mapped to D by a dense layer before the decoder sees them.
      share_layers: a few blocks' parameters serve all N layers (Lan et al. 2019, ALBERT).
      layer_groups, group_size: of shared layers: the depth is divided into so many groups, and each repeats so many blocks.

      layers: the kinds of layers, a pattern that is repeated over the depth.

      positions: what embeddings say of them: "learned" table, "sinusoidal" (Vaswani et al. 2017), or "none".
      position_offset: rows of the learned table before position 0 (RoBERTa, BART: 2).
      count_padding: whether padding tokens take a position number too; RoBERTa counts only the others.
      prompt_positions: what numbers the tokens of prompts that are padded in front, when they are continued: "tokens" counts real
        ones, "slots" padding too (BART), "rows" real ones from the first row of the table, before `position_offset` (RoBERTa, whose
        generation in transformers is so, though its training is not).
      num_types: rows of the token-type table; 0 has none.
      token_types: token types that are given are rows of the token table, added to the others (GPT-2).
      embedding_size: E, width of the embeddings where it differs from D; 0 is D.
      embedding_projection: whether E is mapped to D by a dense layer although they may be equal.
      embedding_scale: factor on token embeddings.
      embedding_norm: layer norm over the sum of embeddings.
      tied: predictions use the token table; otherwise they have a table of their own.

      norm_kind: "layer" (Ba et al. 2016) or "rms" (Zhang and Sennrich 2019: no mean, no bias).
      norm_bias: whether layer norms have a bias.
      norm_epsilon: added to the variance.

      num_kv_heads: G key and value heads, each shared by H / G query heads (Ainslie et al. 2023); 0 is H.
      head_size: K, width of a head; 0 is D / H.
      relative_buckets, relative_max_distance: of "relative" positions.

      activation: of the feed-forward layer, see layers.ACTIVATIONS.

      pooling: the position a whole row is summarized by: "first", "last" (not padding), "eos" (the last one).
      pooler_activation: of the summary's dense layer; empty: the state itself.
      eos_id: what "eos" looks for.
      pad_id: the padding token, for "last" and `count_padding`; -1 where there is none.
      head_activation: of the masked-token head; empty is `activation`.
      head_bias: whether token predictions of a decoder have a (constant) bias.
      head_transform: whether a decoder predicts tokens through the masked-token head's layers, as BERT does.
      logit_scale: factor on hidden states before the vocabulary projection.
      logit_cap: predictions of tokens become cap tanh(logit / cap) (Gemma 2); 0 leaves them.

      dropout_rate: on embeddings and residual branches.
      attention_dropout_rate: on attention probabilities.
      activation_dropout_rate: inside the feed-forward layer.
      final_dropout: whether dropout also falls on the output of the stack (T5).
      init_std: standard deviation of initial weights.
      mup_base_width: D from which deviations are scaled (mup.py); 0 scales none.
      init: "truncated_normal" (cut at two deviations, as BERT) or "normal" (as GPT-2).
      residual_init_std: the same for the matrices that write to the residual stream; 0 is init_std.
      dtype: compute type of matrix products and activations.
      scan_layers: loop over stacked blocks, or unroll them, in the compiled program.
      remat: what the backward pass recomputes ("none", "dots", "full").
      attention_backend: "xla" keeps scores in memory, "flash" never does, "auto" is whichever is fast on the devices at hand.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_length: int

    causal: bool = False
    encoder: Architecture | None = None
    shared_tokens: bool = True
    memory_projection: bool = False
    share_layers: bool = False
    layer_groups: int = 1
    group_size: int = 1

    layers: tuple[LayerSpec, ...] = (LayerSpec(),)

    positions: Literal["learned", "sinusoidal", "none"] = "learned"
    position_offset: int = 0
    count_padding: bool = True
    prompt_positions: Literal["tokens", "slots", "rows"] = "tokens"
    num_types: int = 0
    token_types: bool = False
    embedding_size: int = 0
    embedding_projection: bool = False
    embedding_scale: float = 1.0
    embedding_norm: bool = False
    tied: bool = True

    norm_kind: Literal["layer", "rms"] = "layer"
    norm_bias: bool = True
    norm_epsilon: float = 1e-5

    num_kv_heads: int = 0
    head_size: int = 0
    relative_buckets: int = 32
    relative_max_distance: int = 128

    activation: str = "gelu"

    pooling: Literal["first", "last", "eos"] = "first"
    pooler_activation: str = "tanh"
    eos_id: int = -1
    pad_id: int = -1
    head_activation: str = ""
    head_bias: bool = False
    head_transform: bool = False
    logit_scale: float = 1.0
    logit_cap: float = 0.0

    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    activation_dropout_rate: float = 0.0
    final_dropout: bool = False
    init_std: float = 0.02
    mup_base_width: int = 0
    init: Literal["truncated_normal", "normal"] = "normal"
    residual_init_std: float = 0.0
    dtype: str = "float32"
    scan_layers: bool = True
    remat: Literal["none", "dots", "full"] = "none"
    attention_backend: Literal["auto", "xla", "flash"] = "auto"

    @property
    def head_width(self) -> int:
        """K."""
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def kv_heads(self) -> int:
        """G."""
        return self.num_kv_heads or self.num_heads

    @property
    def embedding_width(self) -> int:
        """E."""
        return self.embedding_size or self.hidden_size

    @property
    def source(self) -> Architecture:
        """The encoder of a stack that has one."""
        assert self.encoder is not None
        return self.encoder

    @property
    def memory_width(self) -> int:
        """Width of what a decoder sees of its encoder."""
        return self.hidden_size if self.memory_projection else self.source.hidden_size

    @functools.cached_property
    def layer_specs(self) -> tuple[LayerSpec, ...]:
        """The kind of each of the N layers, with its sizes."""
        pattern = [self._sized(spec) for spec in self.layers]
        return tuple(pattern[number % len(pattern)] for number in range(self.num_layers))

    def _sized(self, spec: LayerSpec) -> LayerSpec:
        heads = spec.num_heads or self.num_heads
        return dataclasses.replace(
            spec,
            num_heads=heads,
            num_kv_heads=spec.num_kv_heads or (heads if spec.num_heads else self.kv_heads),
            head_size=spec.head_size or self.head_width,
            intermediate_size=spec.intermediate_size or self.intermediate_size,
        )

    @property
    def kinds(self) -> tuple[LayerSpec, ...]:
        """The different ones among them."""
        return tuple(dict.fromkeys(self.layer_specs))

    @property
    def final_norm(self) -> bool:
        """Whether the stack's output is normalized: where its last layer does not do that itself."""
        return self.layer_specs[-1].residual != "post"

    @property
    def num_blocks(self) -> int:
        """Blocks with parameters of their own."""
        return self.layer_groups * self.group_size if self.share_layers else self.num_layers

    @property
    def block_of_layer(self) -> tuple[int, ...]:
        """The number of each layer's block."""
        if not self.share_layers:
            return tuple(range(self.num_layers))
        rounds = self.num_layers // self.group_size
        # The quotients in floating point, as the released code divides: the depth need not be a multiple of the groups.
        group = [int(number / (rounds / self.layer_groups)) for number in range(rounds)]
        return tuple(first * self.group_size + inner for first in group for inner in range(self.group_size))

    @property
    def has_tokens(self) -> bool:
        """Whether the stack has a token table of its own."""
        return self.encoder is None or not self.shared_tokens

    @property
    def width_ratio(self) -> float:
        """The ratio r of mup.py."""
        return self.hidden_size / self.mup_base_width if self.mup_base_width else 1.0

    @property
    def readout_init_std(self) -> float:
        """Deviation of matrices from D to a few classes; a dense layer scales its own by 1 / sqrt(r) besides."""
        return self.init_std / self.width_ratio**0.5

    @property
    def compute_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.dtype)

    @property
    def kind(self) -> str:
        """One of `encoder`, `decoder` and `encoder-decoder`."""
        if self.encoder is not None:
            return "encoder-decoder"
        return "decoder" if self.causal else "encoder"

    def replace(self, **changes: Any) -> Architecture:
        """A copy with some fields changed; those of computation and dropout change in its encoder too."""
        shared = {"dtype", "scan_layers", "remat", "attention_backend"}
        shared |= {"dropout_rate", "attention_dropout_rate", "activation_dropout_rate"}
        if self.encoder is not None and "encoder" not in changes:
            inner = {name: value for name, value in changes.items() if name in shared}
            changes = {**changes, "encoder": self.encoder.replace(**inner)}
        return dataclasses.replace(self, **changes)

    def with_layers(self, **changes: Any) -> Architecture:
        """A copy with some fields of all its layers changed."""
        return dataclasses.replace(self, layers=tuple(dataclasses.replace(spec, **changes) for spec in self.layers))


def from_flat(pattern: Sequence[Mapping[str, Any]] = ({},), **flat: Any) -> Architecture:
    """The architecture of fields of itself and of its layers side by side, see layer_spec.nested."""
    fields = nested(flat, pattern)
    return Architecture(**fields | {"layers": tuple(LayerSpec(**layer) for layer in fields["layers"])})
