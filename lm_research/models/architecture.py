"""The architecture of a model: every number and choice that the modules are built from.

Families (models/families/) translate a run's `ModelConfig`, or a Hugging Face config.json, into an Architecture; the modules
depend on no family. Letters such as D and K are those of the legend in lm_research/models/__init__.py.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp

from lm_research.config.model import REMAT_NAMES
from lm_research.models.layer_spec import LayerSpec, nested


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Sizes and choices of one Transformer stack, and of its encoder if it has one.

    Attributes:
      vocab_size: V, rows of the token table.
      hidden_size: D, width of the residual stream.
      num_layers: N, number of layers.
      num_heads: H, number of query heads.
      intermediate_size: F, width of the feed-forward layers.
      max_length: number of positions; 0 is unlimited.

      causal: whether a position attends only to itself and earlier ones.
      encoder: the stack whose output this one also attends to, which makes this the decoder of an encoder-decoder.
      shared_tokens: whether the decoder uses the encoder's token table.
      memory_projection: whether a dense layer maps the encoder's states to D before the decoder attends to them.
      merged_attention: whether the decoder's self-attention also attends to the encoder's states, with the same projections and one
        softmax over both, in place of cross-attention (T5Gemma 2).
      depth_weights: whether, after each branch is added, the state is replaced by a learned weighted sum of itself, all earlier ones and
        the embeddings (DenseFormer, Pagliardini et al. 2024).
      share_layers: whether a few blocks' parameters serve all N layers (ALBERT, Lan et al. 2019).
      layer_groups, group_size: with shared layers, the number of groups the depth is divided into, and of blocks in each group.

      layers: the kinds of layers, a pattern that is repeated over the depth.

      positions: how embeddings encode positions: a "learned" table, "sinusoidal" (Vaswani et al. 2017), or "none".
      position_offset: rows of the table before position 0 (RoBERTa, BART: 2).
      last_wavelength: whether sinusoidal wavelengths end with 10000 x 2 pi instead of just before it (fairseq); then the row of the
        padding token in the table is 0.
      count_padding: whether padding tokens take a position number too; RoBERTa numbers only the others.
      count_masked: whether positions that the attention mask hides take a position number; OPT numbers only the others.
      frozen_padding: whether the embedding of the padding token has no gradient where it is looked up, in the input; nor has the row of
        padding in the table of positions, if positions do not count it (`padding_idx` of PyTorch's nn.Embedding). Outputs that use the
        same table train it.
      isolated_padding: whether padding has embeddings of 0, and attends to all positions alike (DeBERTa) instead of to the real ones.
      prompt_positions: how left-padded prompts are numbered in generation: "tokens" counts real tokens, "slots" padding too (BART),
        and "rows" counts real tokens from the first row of the table, before `position_offset` (RoBERTa, as transformers generates
        with it, although it is trained otherwise).
      num_types: rows of the token-type table; 0 for no table.
      num_task_types: rows of a table of task types, which are added alike (ERNIE 2.0); 0 for no table.
      token_types: whether token types are looked up in the token table and added (GPT-2).
      embedding_size: E, width of the embeddings where it differs from D; 0 is D.
      embedding_projection: whether a dense layer maps E to D, which may be equal.
      project_tokens: whether it maps the token embeddings alone, without a bias, so that positions have width D (OPT).
      output_projection: whether a dense layer without a bias maps the final states to E (OPT).
      embedding_scale: factor on token embeddings.
      round_embedding_scale: whether this factor is rounded to the compute type (Gemma).
      separate_token: a token whose embedding is a vector of its own, which is not scaled, in place of a row of the table (T5Gemma 2); -1 for
        none.
      embedding_norm: whether the sum of the embeddings is normalized.
      norm_before_positions: whether positions are added after that norm instead of before it.
      output_embedding_size: width of the states that the masked-token head multiplies with its own table; 0 is E.
      tied: whether predictions use the token table; otherwise they have their own.

      norm_kind: "layer" (Ba et al. 2016) or "rms" (Zhang and Sennrich 2019: no mean, no bias).
      norm_scale: whether norms have a scale.
      norm_bias: whether layer norms have a bias.
      norm_output: whether a norm follows the last layer, unless layers end with one.
      norm_epsilon: constant added to the variance.
      norm_offset: constant added to the stored scales of norms, which start at 1 - `norm_offset` (Gemma: 1).

      num_kv_heads: G, number of key and value heads, each shared by H / G query heads (Ainslie et al. 2023); 0 is H.
      head_size: K, width of a head; 0 is D / H.
      relative_buckets, relative_max_distance: sizes of the table of "relative" or "disentangled" positions; with a maximum of 0 each
        distance of the latter has its own row.
      relative_norm: whether the table of "disentangled" positions is normalized; this norm has a scale and a bias.

      activation: activation of the feed-forward layers, a key of activations.ACTIVATIONS.

      pooling: what represents the sequence: the state of the "first" position (padding too), of the "first_real" or "last" one (not
        padding), or of the last `eos_id` ("eos"); the "mean" of all states, or the mean after the pooler's layers ("late_mean").
      choice_pooling: pooling of multiple choice, where it differs; empty is `pooling`. "end" is the state of the last position, without the
        pooler's dense layer: padding too in `forward`, as in transformers, and the last real one in tasks, which do not depend on padding.
      pooler_activation: activation of the pooler's dense layer; empty for no dense layer.
      sequence_activation: activation of that layer under a classifier of sequences, where it differs; empty is `pooler_activation`.
      pooler_norm: whether a norm follows the activation (ModernBERT).
      token_pooler: whether classifiers of tokens have the pooler's layers too, applied to each token (ModernBERT).
      transform_bias: whether the dense layers of pooler and masked-token head have biases.
      classifier_bias: whether classifiers have a bias; None for all but those of sequences in models without `pooler_activation`.
      classifier_dropout_rate: dropout before classifiers; None is `dropout_rate`.
      span_layers: whether a feed-forward layer with a residual and a norm precedes the classifier of spans (BigBird).
      sep_id: token that ends questions: answers are not before it, except at the first position, and positions after it have token type 1
        where no types are given (BigBird); -1 for none.
      eos_id: end-of-sequence token, for pooling "eos".
      pad_id: padding token, for pooling "last" and `count_padding`; -1 for none.
      head_activation: activation of the masked-token head; empty is `activation`.
      head_bias: whether token predictions of a decoder have a bias, which is constant (BART).
      train_head_bias: whether that bias is trained (GPT-J).
      head_transform: whether a decoder predicts tokens through the masked-token head, as BERT does.
      masked_transform: whether the masked-token head has a dense layer, an activation and a norm before the vocabulary projection.
      masked_shift: whether a masked token is predicted from the state before it, as the next one is (GPT-BERT).
      masked_bias: whether the masked-token head's vocabulary projection has a bias.
      logit_scale: factor on hidden states before the vocabulary projection.
      logit_cap: soft cap c of token logits, c tanh(logit / c) (Gemma 2); 0 for none.

      balance_weight: factor on the loss that balances the use of experts in training (load_balancing.py).

      dropout_rate: dropout on embeddings and residual branches.
      attention_dropout_rate: dropout on attention probabilities.
      activation_dropout_rate: dropout inside the feed-forward layer.
      final_dropout: whether the output of the stack has dropout too (T5).
      init_std: standard deviation of initial weights.
      mup_base_width: width D at which muP changes nothing (mup.py); 0 turns it off.
      init: "truncated_normal" (cut at two deviations, as in BERT) or "normal" (as in GPT-2).
      residual_init_std: `init_std` of the matrices that write to the residual stream; 0 is init_std.
      dtype: compute type of matrix products and activations.
      quantization: type of the products of blocks in training, a key of quantization.TYPES, or "none" for `dtype` (quantize_products).
      scan_layers: whether the compiled program loops over stacked blocks; otherwise they are unrolled.
      remat: what the backward pass recomputes ("none", "dots", "names", "offload", "full").
      remat_names: arrays that "names" and "offload" keep.
      attention_backend: "xla" stores the scores in memory, "flash" never does, and "auto" takes the faster one on the current devices.
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
    merged_attention: bool = False
    depth_weights: bool = False
    share_layers: bool = False
    layer_groups: int = 1
    group_size: int = 1

    layers: tuple[LayerSpec, ...] = (LayerSpec(),)

    positions: Literal["learned", "sinusoidal", "none"] = "learned"
    position_offset: int = 0
    last_wavelength: bool = False
    count_padding: bool = True
    count_masked: bool = True
    frozen_padding: bool = False
    isolated_padding: bool = False
    prompt_positions: Literal["tokens", "slots", "rows"] = "tokens"
    num_types: int = 0
    num_task_types: int = 0
    token_types: bool = False
    embedding_size: int = 0
    embedding_projection: bool = False
    project_tokens: bool = False
    output_projection: bool = False
    embedding_scale: float = 1.0
    round_embedding_scale: bool = False
    separate_token: int = -1
    embedding_norm: bool = False
    norm_before_positions: bool = False
    output_embedding_size: int = 0
    tied: bool = True

    norm_kind: Literal["layer", "rms"] = "layer"
    norm_scale: bool = True
    norm_bias: bool = True
    norm_output: bool = True
    norm_epsilon: float = 1e-5
    norm_offset: float = 0.0

    num_kv_heads: int = 0
    head_size: int = 0
    relative_buckets: int = 32
    relative_max_distance: int = 128
    relative_norm: bool = False

    activation: str = "gelu"

    pooling: Literal["first", "first_real", "last", "eos", "mean", "late_mean"] = "first"
    choice_pooling: Literal["", "first_real", "mean", "end"] = ""
    pooler_activation: str = "tanh"
    sequence_activation: str = ""
    pooler_norm: bool = False
    token_pooler: bool = False
    transform_bias: bool = True
    classifier_bias: bool | None = None
    classifier_dropout_rate: float | None = None
    span_layers: bool = False
    sep_id: int = -1
    eos_id: int = -1
    pad_id: int = -1
    head_activation: str = ""
    head_bias: bool = False
    train_head_bias: bool = False
    head_transform: bool = False
    masked_shift: bool = False
    masked_transform: bool = True
    masked_bias: bool = True
    logit_scale: float = 1.0
    logit_cap: float = 0.0

    balance_weight: float = 0.0

    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    activation_dropout_rate: float = 0.0
    final_dropout: bool = False
    init_std: float = 0.02
    mup_base_width: int = 0
    init: Literal["truncated_normal", "normal"] = "normal"
    residual_init_std: float = 0.0
    dtype: str = "float32"
    quantization: str = "none"
    scan_layers: bool = True
    remat: Literal["none", "dots", "names", "offload", "full"] = "none"
    remat_names: tuple[str, ...] = REMAT_NAMES
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
    def position_width(self) -> int:
        """Width of the table of positions."""
        return self.hidden_size if self.project_tokens else self.embedding_width

    @property
    def output_width(self) -> int:
        """Width of the final states."""
        return self.embedding_width if self.output_projection else self.hidden_size

    @property
    def prediction_width(self) -> int:
        """Width of the states that the masked-token head multiplies with the output table."""
        return self.output_embedding_size or self.embedding_width

    @property
    def source(self) -> Architecture:
        """The encoder, which must exist."""
        assert self.encoder is not None
        return self.encoder

    @property
    def has_cross_attention(self) -> bool:
        """Whether blocks have a cross-attention layer."""
        return self.encoder is not None and not self.merged_attention

    @property
    def memory_width(self) -> int:
        """Width of the encoder's states as the decoder attends to them."""
        return self.hidden_size if self.memory_projection else self.source.hidden_size

    @functools.cached_property
    def layer_specs(self) -> tuple[LayerSpec, ...]:
        """The spec of each of the N layers, with its sizes filled in."""
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
    def has_global_tokens(self) -> bool:
        """Whether positions may be chosen that have global attention."""
        return any(spec.global_tokens for spec in self.layers)

    @property
    def has_block_sums(self) -> bool:
        """Whether layers attend to sums of blocks."""
        return any(spec.block_sums for spec in self.layers)

    @property
    def kinds(self) -> tuple[LayerSpec, ...]:
        """The distinct layer specs, in order of their first layer."""
        return tuple(dict.fromkeys(self.layer_specs))

    @property
    def steady_length(self) -> int:
        """Number of positions up to which no layer's rotations depend on it; 0 is any number."""
        return min((spec.steady_length for spec in self.layers if spec.rotary_by_length), default=0)

    @property
    def renewed_after(self) -> int:
        """Number of positions beyond which a cache must be computed again once; 0 is never."""
        return self.steady_length if any(spec.is_renewed for spec in self.layers) else 0

    @property
    def final_norm(self) -> bool:
        """Whether a norm follows the last layer; post-norm layers need none."""
        return self.norm_output and self.layer_specs[-1].residual != "post"

    @property
    def num_blocks(self) -> int:
        """Number of blocks with their own parameters."""
        return self.layer_groups * self.group_size if self.share_layers else self.num_layers

    @property
    def block_of_layer(self) -> tuple[int, ...]:
        """The index of each layer's block."""
        if not self.share_layers:
            return tuple(range(self.num_layers))
        rounds = self.num_layers // self.group_size
        # Floating-point division as in the released code: the depth need not be a multiple of the groups.
        group = [int(number / (rounds / self.layer_groups)) for number in range(rounds)]
        return tuple(first * self.group_size + inner for first in group for inner in range(self.group_size))

    @property
    def has_tokens(self) -> bool:
        """Whether the stack has its own token table."""
        return self.encoder is None or not self.shared_tokens

    @property
    def width_ratio(self) -> float:
        """The ratio r in mup.py; 1 without muP."""
        return self.hidden_size / self.mup_base_width if self.mup_base_width else 1.0

    @property
    def readout_init_std(self) -> float:
        """Initial deviation of matrices from D to a few classes; Dense divides it by sqrt(r) once more."""
        return self.init_std / self.width_ratio**0.5

    @property
    def compute_dtype(self) -> jnp.dtype:
        """`dtype` as a JAX type."""
        return jnp.dtype(self.dtype)

    @property
    def kind(self) -> str:
        """One of "encoder", "decoder" and "encoder-decoder"."""
        if self.encoder is not None:
            return "encoder-decoder"
        return "decoder" if self.causal else "encoder"

    def replace(self, **changes: Any) -> Architecture:
        """Copy with changed fields; those of computation and dropout also change in the encoder."""
        shared = {"dtype", "quantization", "scan_layers", "remat", "remat_names", "attention_backend"}
        shared |= {"dropout_rate", "attention_dropout_rate", "activation_dropout_rate"}
        if self.encoder is not None and "encoder" not in changes:
            inner = {name: value for name, value in changes.items() if name in shared}
            changes = {**changes, "encoder": self.encoder.replace(**inner)}
        return dataclasses.replace(self, **changes)

    def with_layers(self, **changes: Any) -> Architecture:
        """Copy with changed fields in every LayerSpec."""
        return dataclasses.replace(self, layers=tuple(dataclasses.replace(spec, **changes) for spec in self.layers))


def from_flat(pattern: Sequence[Mapping[str, Any]] = ({},), **flat: Any) -> Architecture:
    """Build an architecture from its own and its layers' fields in one flat mapping (see layer_spec.nested)."""
    fields = nested(flat, pattern)
    return Architecture(**fields | {"layers": tuple(LayerSpec(**layer) for layer in fields["layers"])})
