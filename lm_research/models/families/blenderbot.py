"""Blenderbot (Roller et al. 2020, arXiv:2004.13637): pre-norm encoder-decoders of dialogues, with few encoder layers."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.bart import Bart
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import EncoderDecoderConfig, with_defaults, without

# Width, heads, feed-forward width, encoder layers, decoder layers of the released models.
_TABLE = {
    "400m": (1280, 32, 5120, 2, 12),
    "1b": (2560, 32, 10240, 2, 12),
    "3b": (2560, 32, 10240, 2, 24),
}


class Blenderbot(Bart):
    """A pre-norm encoder-decoder with learned positions, for dialogues (Roller et al. 2020)."""

    # The released models, two of them distilled from the largest; 128 positions, vocabulary of 8,008.
    sizes = {
        name: dict(hidden_size=d, num_heads=h, intermediate_size=f, num_encoder_layers=e, num_layers=n, max_length=128)
        for name, (d, h, f, e, n) in _TABLE.items()
    }
    traits = dict(norm="pre", head_bias=True)
    run_traits = dict(activation="gelu", norm_epsilon=1e-5, pad_id=0, eos_id=2)

    model_types = {"blenderbot": "Blenderbot"}
    classes = without(Bart.classes, "ForSequenceClassification", "ForQuestionAnswering")
    config_fields = with_defaults(
        Bart.config_fields,
        {"vocab_size": 8008, "d_model": 2560, "max_position_embeddings": 128, "pad_token_id": 0},
    )

    _scales_new = True
    _stack_defaults = {
        **{"encoder_layers": 2, "encoder_ffn_dim": 10240, "encoder_attention_heads": 32},
        **{"decoder_layers": 24, "decoder_ffn_dim": 10240, "decoder_attention_heads": 32},
    }

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        hf = super().to_hf(arch)
        return hf if arch.encoder is None else hf | {"decoder_start_token_id": 1}


FAMILIES.register("blenderbot", EncoderDecoderConfig)(Blenderbot())
