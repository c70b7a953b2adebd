"""Whole models: a stack, or an encoder and a decoder, with a prediction head.

Models that predict tokens return a `Projection` instead of logits: the hidden states and the table whose product the logits are. The loss
computes this product in parts (objectives/cross_entropy.py); `Projection.logits` returns it whole.

Legend: lm_research/models/__init__.py.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm_research.models.activations import activation, capped
from lm_research.models.architecture import Architecture
from lm_research.models.feed_forward import FeedForward
from lm_research.models.head_kinds import HEADS, HeadKind
from lm_research.models.layers import Dense, dropout, make_param, norm, split_key, zeros_param
from lm_research.models.transformer import Decoder, Encoder, EncoderOutput
from lm_research.parallel.rules import per_part


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """The choice of a model's head.

    Attributes:
      name: a key of head_kinds.HEADS.
      num_labels: C, number of classes of a classification head.
      pooled: whether the head "none" has a pooler.
    """

    name: str
    num_labels: int = 2
    pooled: bool = True

    @property
    def kind(self) -> HeadKind:
        """The parts and outputs of this kind of head."""
        return HEADS[self.name]

    @property
    def num_classes(self) -> int:
        """C, number of outputs of the classifier."""
        return self.kind.labels or self.num_labels


class Projection(NamedTuple):
    """Logits before the vocabulary product: hidden table^T + bias, with hidden states [B, M, E], a token table [V, E] and a bias [V] or None.

    With a cap c, logits become c tanh(logit / c). The table may have a copy for each part of the batch, [G, V, E].
    """

    hidden_BME: jax.Array
    table_VE: jax.Array
    bias_V: jax.Array | None
    cap: float | None = None

    def logits(self) -> jax.Array:
        """Logits [B, M, V] in float32."""
        hidden, table = self.hidden_BME, self.table_VE.astype(self.hidden_BME.dtype)
        product = functools.partial(jnp.einsum, "BME,VE->BMV", preferred_element_type=jnp.float32)
        if table.ndim == 2:
            logits = product(hidden, table)
        else:
            logits = per_part(lambda table, rows, _: product(rows[0], table), table, [hidden])
        return capped(logits if self.bias_V is None else logits + self.bias_V, self.cap)


class MaskedLMHead(nnx.Module):
    """BERT's masked-token head: dense, activation, norm, then the token table (tied, or its own) with a bias.

    The architecture defines which of the three layers and of the biases exist.
    """

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        width, dense = arch.prediction_width, [(arch.hidden_size, "embed")]
        if arch.masked_transform:
            self.dense = Dense(dense, [(width, None)], arch, rngs, bias=arch.transform_bias)
            self.norm = norm(arch, width)
        self.bias = zeros_param((arch.vocab_size,), ("vocab",)) if arch.masked_bias else None
        self.table = None if arch.tied else make_param(rngs, (arch.vocab_size, width), ("vocab", "embed"), arch)
        self.activation = (arch.head_activation or arch.activation) if arch.masked_transform else ""
        self.scale, self.cap = arch.logit_scale, arch.logit_cap or None

    def __call__(self, hidden_BMD: jax.Array, table_VE: jax.Array | None) -> Projection:
        """Predict tokens; the embedding table `table_VE` is not used by a head with its own table."""
        hidden_BME = hidden_BMD
        if self.activation:
            hidden_BME = self.norm(activation(self.activation, self.dense(hidden_BMD)))
        hidden_BME = hidden_BME if self.scale == 1.0 else hidden_BME * self.scale
        table_VE = table_VE if self.table is None else self.table[...]
        assert table_VE is not None
        return Projection(hidden_BME, table_VE, None if self.bias is None else self.bias[...], self.cap)


class NextTokenHead(nnx.Module):
    """A decoder's token head: the token table, tied or its own, and optionally a bias."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        size = (arch.vocab_size, arch.output_width)
        self.table = None if arch.tied else make_param(rngs, size, ("vocab", "embed"), arch)
        self.bias = zeros_param((arch.vocab_size,), ("vocab",)) if arch.head_bias else None
        self.scale, self.cap, self.train_bias = arch.logit_scale, arch.logit_cap or None, arch.train_head_bias

    def __call__(self, hidden_BMD: jax.Array, table_VD: jax.Array) -> Projection:
        """Predict next tokens; the embedding table `table_VD` is not used by a head with its own table."""
        hidden_BMD = hidden_BMD if self.scale == 1.0 else hidden_BMD * self.scale
        bias_V = None if self.bias is None else self.bias[...]
        if bias_V is not None and not self.train_bias:  # a constant of the checkpoint, which BART does not train either
            bias_V = jax.lax.stop_gradient(bias_V)
        return Projection(hidden_BMD, table_VD if self.table is None else self.table[...], bias_V, self.cap)


AVERAGES = ("mean", "late_mean")  # the poolings that use all positions


class Pooler(nnx.Module):
    """The summary of a sequence: the state of one position, or the mean of all, through the layers that the architecture defines.

    These are a dense layer and an activation, after which a norm may follow. With pooling "tokens" the summary is that of each position.
    """

    def __init__(self, arch: Architecture, rngs: nnx.Rngs, pooling: str, activation: str = "") -> None:
        self.activation = "" if pooling == "end" else activation or arch.pooler_activation
        if self.activation:
            width, bias = arch.output_width, arch.transform_bias
            self.dense = Dense([(width, "embed")], [(width, None)], arch, rngs, bias=bias)
            self.norm = norm(arch) if arch.pooler_norm else None
        self.arch, self.pooling = arch, pooling

    def __call__(
        self,
        x_BLD: jax.Array,
        tokens_BL: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
        num_segments: int = 0,
    ) -> jax.Array:
        """Summaries [B, D], or with `num_segments` K > 0 those of segments 1 to K, [B, K, D]; of pooling "tokens", [B, L, D].

        Those of absent segments are meaningless. Tokens and segments may be None where the pooling does not depend on them.
        """
        if self.pooling == "late_mean":
            return self._pooled(self._transformed(x_BLD), tokens_BL, segments_BL, num_segments)
        return self._transformed(self._pooled(x_BLD, tokens_BL, segments_BL, num_segments))

    def _transformed(self, x: jax.Array) -> jax.Array:
        if not self.activation:
            return x
        x = activation(self.activation, self.dense(x))
        return x if self.norm is None else self.norm(x)

    def _pooled(
        self, x_BLD: jax.Array, tokens_BL: jax.Array | None, segments_BL: jax.Array | None, num_segments: int
    ) -> jax.Array:
        if self.pooling == "tokens":
            return x_BLD
        if num_segments:
            # A product with one-hot rows instead of a gather, as in `predict_tokens`.
            assert tokens_BL is not None and segments_BL is not None
            inside_BKL = segments_BL[:, None] == 1 + jnp.arange(num_segments)[:, None]
            return jnp.einsum("BKL,BLD->BKD", self._weights(tokens_BL[:, None], inside_BKL, x_BLD.dtype), x_BLD)
        if self.pooling == "first":
            return x_BLD[:, 0]
        real_BL = jnp.ones(x_BLD.shape[:2], bool) if segments_BL is None else segments_BL > 0
        if self.pooling in AVERAGES:
            return jnp.einsum("BL,BLD->BD", self._weights(tokens_BL, real_BL, x_BLD.dtype), x_BLD)
        index_B = self._pooled_position(tokens_BL, real_BL)
        return jnp.take_along_axis(x_BLD, index_B[:, None, None], axis=1)[:, 0]

    def _weights(self, tokens_L: jax.Array | None, inside_L: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """The weight of each position in the summary of those in `inside_L`; both may have axes in front of L."""
        if self.pooling in AVERAGES:
            return (inside_L / inside_L.sum(-1, keepdims=True).clip(1)).astype(dtype)
        return jax.nn.one_hot(self._pooled_position(tokens_L, inside_L), inside_L.shape[-1], dtype=dtype)

    def _pooled_position(self, tokens_L: jax.Array | None, inside_L: jax.Array) -> jax.Array:
        """Index of the position that represents those in `inside_L`; both may have axes in front of L."""
        if self.pooling in ("first", "first_real"):
            return jnp.argmax(inside_L, -1)
        if self.pooling == "end":
            return inside_L.shape[-1] - 1 - jnp.argmax(inside_L[..., ::-1], -1)
        assert tokens_L is not None
        candidates_L = tokens_L == self.arch.eos_id if self.pooling == "eos" else tokens_L != self.arch.pad_id
        return ((candidates_L & inside_L) * jnp.arange(tokens_L.shape[-1])).argmax(-1)


class SpanLayers(nnx.Module):
    """BigBird's layers before the classifier of spans: a feed-forward layer with a residual and a norm."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        self.feed_forward, self.norm = FeedForward(arch, arch.layer_specs[0], rngs), norm(arch)
        self.rate = arch.dropout_rate

    def __call__(self, x_BLD: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        """Apply the layers, [B, L, D]."""
        first, last = split_key(dropout_key, 2)
        y_BLD = dropout(self.feed_forward(dropout(x_BLD, self.rate, first)), self.rate, last)
        return self.norm(x_BLD + y_BLD)


def question_mask(tokens_BL: jax.Array, sep_id: int) -> jax.Array:
    """Whether positions are part of the question, [B, L]: up to the first separator, or the first position if there is none."""
    length_B1 = (tokens_BL == sep_id).argmax(1, keepdims=True) + 1
    return jnp.arange(tokens_BL.shape[1]) < length_B1


class ReplacedTokenHead(nnx.Module):
    """ELECTRA's discriminator (Clark et al. 2020): dense, activation, one logit per position."""

    def __init__(self, arch: Architecture, rngs: nnx.Rngs) -> None:
        self.dense = Dense([(arch.hidden_size, "embed")], [(arch.hidden_size, None)], arch, rngs)
        self.output = Dense([(arch.hidden_size, "embed")], [(1, None)], arch, rngs, std=arch.readout_init_std)
        self.activation = arch.activation

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """Logits [B, L] in float32 that tokens were replaced."""
        return self.output(activation(self.activation, self.dense(x_BLD)))[..., 0].astype(jnp.float32)


class Model(nnx.Module):
    """A model: one or two stacks (`encoder`, `decoder`) with the modules of its head."""

    def __init__(self, arch: Architecture, head: HeadSpec, rngs: nnx.Rngs) -> None:
        assert head.name in HEADS, head.name
        if arch.encoder is not None:
            self.encoder = Encoder(arch.encoder, rngs)
        if arch.causal:
            self.decoder = Decoder(arch, rngs)
        else:
            self.encoder = Encoder(arch, rngs)
        if arch.memory_projection:
            memory = [(arch.source.hidden_size, "embed")]
            self.memory_projection = Dense(memory, [(arch.hidden_size, None)], arch, rngs)
        width, kind = [(arch.output_width, "embed")], head.kind
        self.masked_lm = MaskedLMHead(arch, rngs) if kind.tokens == "masked" else None
        next_token = MaskedLMHead if arch.head_transform else NextTokenHead
        self.next_token = next_token(arch, rngs) if kind.tokens == "next" else None
        pooling = self._pooling(arch, head)
        own_activation = arch.sequence_activation if head.name == "classification" else ""
        self.pooler = Pooler(arch, rngs, pooling, own_activation) if pooling else None
        if kind.next_sentence:
            self.next_sentence = Dense(width, [(head.num_labels, None)], arch, rngs, std=arch.readout_init_std)
        if kind.replaced:
            self.replaced_token = ReplacedTokenHead(arch, rngs)
        spans = head.name == "span"
        self.span_layers = SpanLayers(arch, rngs) if spans and arch.span_layers else None
        self.masks_questions = spans and arch.sep_id >= 0
        if kind.classifies:
            biased = bool(arch.pooler_activation) or not kind.bare_classifier
            biased = biased if arch.classifier_bias is None else arch.classifier_bias
            classes = [(head.num_classes, None)]
            self.classifier = Dense(width, classes, arch, rngs, std=arch.readout_init_std, bias=biased)
        self.arch = arch

    @staticmethod
    def _pooling(arch: Architecture, head: HeadSpec) -> str:
        """The pooling of this head; empty for no pooler."""
        kind = head.kind
        if kind.pooler == "yes" or kind.pooler == "optional" and head.pooled:
            return arch.choice_pooling or arch.pooling if head.name == "multiple_choice" else arch.pooling
        return "tokens" if kind.classifies and arch.token_pooler else ""

    @property
    def table_VE(self) -> jax.Array:
        """The embedding table that tied predictions use."""
        stack = self.decoder if self.arch.causal and self.arch.has_tokens else self.encoder
        return stack.embeddings.tokens[...]

    @property
    def reader(self) -> Encoder | Decoder:
        """The stack that reads `input_ids`."""
        return self.decoder if self.arch.kind == "decoder" else self.encoder

    def encode(
        self, tokens_BS: jax.Array, segments_BS: jax.Array | None = None, **options: Any
    ) -> tuple[jax.Array, EncoderOutput]:
        """Encode a source: final states [B, S, D], and the output in the form that a decoder reads. Options are those of Transformer."""
        x_BSD = self.encoder(tokens_BS, segments_BS, **options)
        segments_BS = jnp.ones_like(tokens_BS) if segments_BS is None else segments_BS
        memory_BSD = self.memory_projection(x_BSD) if self.arch.memory_projection else x_BSD
        return x_BSD, EncoderOutput(memory_BSD, segments_BS, self.encoder.embeddings.table)

    def predict_tokens(self, x_BLD: jax.Array, positions_BM: jax.Array | None = None) -> Projection:
        """Projection for the tokens at the given positions (of a decoder, after them), or at all for None."""
        if self.masked_lm is not None and self.arch.masked_shift:  # the first token has no state before it
            x_BLD = jnp.concatenate([x_BLD[:, :1], x_BLD[:, :-1]], axis=1)
        if positions_BM is not None:
            # A product with one-hot rows instead of a gather: same values, and a gradient without a scatter.
            one_hot_BML = jax.nn.one_hot(positions_BM, x_BLD.shape[1], dtype=x_BLD.dtype)
            x_BLD = jnp.einsum("BML,BLD->BMD", one_hot_BML, x_BLD)
        head = self.next_token if self.masked_lm is None else self.masked_lm
        assert head is not None
        return head(x_BLD, self.table_VE)

    def predict_next_sentence(self, x_BLD: jax.Array) -> jax.Array:
        """Logits [B, 2] in float32: 0 = the second segment follows the first, 1 = it was drawn at random."""
        assert self.pooler is not None
        return self.next_sentence(self.pooler(x_BLD)).astype(jnp.float32)

    def classify(
        self,
        x_BLD: jax.Array,
        tokens_BL: jax.Array | None = None,
        segments_BL: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        num_segments: int = 0,
    ) -> jax.Array:
        """Class logits in float32: of each sequence [B, C], or [B, K, C] for `num_segments` K; or of each token, [B, L, C]."""
        if self.pooler is not None:
            x_BLD = self.pooler(x_BLD, tokens_BL, segments_BL, num_segments)
        rate = self.arch.classifier_dropout_rate
        rate = self.arch.dropout_rate if rate is None else rate
        if self.span_layers is not None:
            dropout_key, layers_key = split_key(dropout_key, 2)
            x_BLD = self.span_layers(x_BLD, layers_key)
        logits = self.classifier(dropout(x_BLD, rate, dropout_key)).astype(jnp.float32)
        if not self.masks_questions:
            return logits
        assert tokens_BL is not None
        hidden_BL = question_mask(tokens_BL, self.arch.sep_id).at[:, 0].set(False)
        return logits - 1e6 * hidden_BL[..., None]
