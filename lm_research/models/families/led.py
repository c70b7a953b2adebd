"""LED (Beltagy et al. 2020, arXiv:2004.05150): BART for long sources, whose encoder attends to windows and to chosen positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Size, short
from lm_research.config import key
from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture
from lm_research.models.families.bart import Bart
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import (
    FIX,
    ConfigField,
    EncoderDecoderConfig,
    ParamMapping,
    attention,
    dense,
    given,
    without,
)

_ENCODER_LENGTH, _DECODER_LENGTH = "max_encoder_position_embeddings", "max_decoder_position_embeddings"


@dataclasses.dataclass(frozen=True)
class LedConfig(EncoderDecoderConfig):
    """Model section of LED."""

    attention_window: int = key(1024, "Size of the encoder's window, half of it on each side; even.", low=2, high=2**20)
    decoder_max_length: int | None = key(None, "Positions of the decoder; None uses max_length.", low=1, high=2**24)


class Led(Bart):
    """BART for long sources: windows, and global attention of chosen positions, in the encoder (Beltagy et al. 2020)."""

    # The released models; vocabulary of 50,265.
    sizes = {
        name: {**size} | dict(max_length=16384, decoder_max_length=1024, attention_window=1024)
        for name, size in Bart.sizes.items()
    }
    traits = dict(norm="post", embedding_norm=True, pooling="eos", head_bias=True)

    model_types = {"led": "LED"}
    classes = without(Bart.classes, "ForCausalLM", "ForSequenceClassification")
    decoder_config = None
    config_fields = tuple(
        ConfigField("max_length", _DECODER_LENGTH, 1024) if one.field == "max_length" else one
        for one in Bart.config_fields
    )
    other_keys = Bart.other_keys | {_ENCODER_LENGTH: Size, "attention_window": Size | list[Size]}
    base_prefix = "led."

    @override
    def architecture(self, config: Any, vocab_size: int) -> Architecture:
        arch = super().architecture(config, vocab_size)
        arch = arch.replace(encoder=_with_windows(arch.source, [config.attention_window]))
        return arch.replace(max_length=config.decoder_max_length or config.max_length)

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        arch = super().from_hf(hf, names)
        encoder, windows = arch.source, given(hf, "attention_window", 512)
        windows = [windows] * encoder.num_layers if isinstance(windows, int) else windows
        if len(windows) != encoder.num_layers or any(window % 2 for window in windows):
            raise PretrainedError(
                f"config.json: attention_window is {short(hf['attention_window'])}; it must be an even number, or one for each of the "
                f"{encoder.num_layers} encoder_layers. {FIX}"
            )
        encoder = encoder.replace(max_length=given(hf, _ENCODER_LENGTH, 16384))
        return arch.replace(encoder=_with_windows(encoder, windows))

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        encoder = arch.source
        windows = [spec.window for spec in encoder.layer_specs]
        return super().to_hf(arch) | {_ENCODER_LENGTH: encoder.max_length, "attention_window": windows}

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        ours, theirs = "encoder/layers/attention", "@encoder.layers.{}.self_attn.longformer_self_attn"
        own = (
            *attention(ours, theirs, "query", "key", "value", ""),
            *dense(f"{ours}/output", "@encoder.layers.{}.self_attn.output", inputs=2),
            *(
                mapping
                for part in ("query", "key", "value")
                for mapping in dense(f"{ours}/global_{part}", f"{theirs}.{part}_global")
            ),
        )
        known = {mapping.path: mapping for mapping in (*super().weights(arch, head), *own)}
        return tuple(known.values())


def _with_windows(encoder: Architecture, windows: Sequence[int]) -> Architecture:
    """The encoder with layers that have these windows in turn, the shortest pattern that repeats."""
    distinct = windows[:1] if len(set(windows)) == 1 else windows
    layers = (
        dataclasses.replace(encoder.layers[0], attention="window", window=window, global_tokens=True)
        for window in distinct
    )
    return encoder.replace(layers=tuple(layers))


FAMILIES.register("led", LedConfig)(Led())
