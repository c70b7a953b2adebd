"""Encoder-decoders of two stacks that config.json describes as a family of decoders does (T5Gemma, Zhang et al. 2025, arXiv:2504.06225)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Object, Rate
from lm_research.config import key
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import Family
from lm_research.models.families.common import ParamMapping, attention, check_others, dense, given, tensor
from lm_research.models.families.decoder_weights import decoder_weights
from lm_research.models.families.gemma2 import GemmaConfig
from lm_research.models.layer_spec import LayerSpec

# Our norms of a block -> theirs.
NORMS = {
    "attention_norm": "pre_self_attn_layernorm",
    "attention_output_norm": "post_self_attn_layernorm",
    "cross_attention_norm": "pre_cross_attn_layernorm",
    "cross_attention_output_norm": "post_cross_attn_layernorm",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "feed_forward_output_norm": "post_feedforward_layernorm",
}
_OWN_KEYS: dict[str, Any] = dict.fromkeys(("dropout_rate", "attention_dropout", "classifier_dropout_rate"), Rate)
_OWN_KEYS |= {"encoder": Object, "decoder": Object}


@dataclasses.dataclass(frozen=True)
class T5GemmaConfig(GemmaConfig):
    """Model section of encoder-decoders of two Gemma stacks."""

    num_encoder_layers: int | None = key(None, "Number of encoder blocks; None uses num_layers.", low=1, high=4096)


class StackPair(Family):
    """The base of encoder-decoders of two stacks that the next base class describes.

    Attributes:
      _stack_type: `model_type` of the decoder in config.json.
      _shared: whether a tied token table is that of both stacks.
    """

    classes = {
        "ForConditionalGeneration": "seq2seq_lm",
        "ForSequenceClassification": "classification",
        "ForTokenClassification": "token_classification",
        "Model": "none",
    }
    start_token = "bos_token_id"
    _stack_type: str
    _shared: bool = False

    @override
    def architecture(self, config: Any, vocab_size: int) -> Architecture:
        decoder = super().architecture(config, vocab_size)
        return self._joined(decoder.replace(num_layers=config.num_encoder_layers or decoder.num_layers), decoder)

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        check_others(hf, _OWN_KEYS)
        stacks = []
        for part in self._parts(hf):
            fields = {"attention_dropout": given(hf, "attention_dropout", 0.0)}
            fields["tie_word_embeddings"] = given(hf, "tie_word_embeddings", True)
            stacks.append(super().from_hf({**part, **fields}, names))
        joined = self._joined(*stacks).replace(dropout_rate=given(hf, "dropout_rate", 0.0))
        return joined.replace(classifier_dropout_rate=given(hf, "classifier_dropout_rate", 0.0))

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        source = arch.encoder or arch
        source = source.replace(causal=True, layers=tuple(map(self._from_both_sides, source.layers)))
        pad = {"pad_token_id": max(arch.pad_id, 0)}
        encoder, decoder = (super(StackPair, self).to_hf(stack) | pad for stack in (source, arch))
        decoder |= {"model_type": self._stack_type}
        return self._written_parts(encoder, decoder) | {
            "model_type": next(iter(self.model_types)),
            "is_encoder_decoder": True,
            "tie_word_embeddings": arch.tied,
            "vocab_size": arch.vocab_size,
            "dropout_rate": arch.dropout_rate,
            "attention_dropout": arch.attention_dropout_rate,
            "classifier_dropout_rate": given(vars(arch), "classifier_dropout_rate", arch.dropout_rate),
            **pad,
        }

    def _joined(self, encoder: Architecture, decoder: Architecture) -> Architecture:
        layers = tuple(map(self._to_both_sides, encoder.layers))
        encoder = encoder.replace(causal=False, layers=layers, final_dropout=True, logit_cap=0.0)
        shared = self._shared and decoder.tied
        return decoder.replace(encoder=encoder, shared_tokens=shared, final_dropout=True, classifier_bias=True)

    def _parts(self, hf: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The objects of the two stacks in config.json."""
        return given(hf, "encoder", {}), given(hf, "decoder", {})

    def _written_parts(self, encoder: dict[str, Any], decoder: dict[str, Any]) -> dict[str, Any]:
        return {"encoder": {**encoder, "model_type": self._stack_type}, "decoder": decoder}

    def _to_both_sides(self, spec: LayerSpec) -> LayerSpec:
        """The encoder's layer for the size of a window in config.json."""
        raise NotImplementedError

    def _from_both_sides(self, spec: LayerSpec) -> LayerSpec:
        """The inverse of `_to_both_sides`."""
        raise NotImplementedError


def stack_weights(name: str, *theirs: str) -> tuple[ParamMapping, ...]:
    """Map the "encoder" or the "decoder", whose tensors' names begin with any of `theirs`; with the first, where they are written."""
    projections = ("q_proj", "k_proj", "v_proj", "o_proj")
    mapped = (
        *decoder_weights("", name, NORMS),
        *attention(f"{name}/layers/cross_attention", "@layers.{}.cross_attn", *projections),
        *tensor(f"{name}/embeddings/own_token", "@embed_tokens.eoi_embedding"),
    )
    own = (weight for weight in mapped if weight.path.startswith(f"{name}/"))
    return tuple(dataclasses.replace(one, names=tuple(p + one.names[0][1:] for p in theirs)) for one in own)


def head_weights() -> tuple[ParamMapping, ...]:
    """Map the heads."""
    return (*tensor("next_token/table", "lm_head.out_proj.weight"), *dense("classifier", "score.out_proj"))
