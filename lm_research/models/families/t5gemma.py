"""T5Gemma (Zhang et al. 2025, arXiv:2504.06225): encoder-decoders of two Gemma 2 stacks, the second with cross-attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

from typing_extensions import override

from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import ParamMapping
from lm_research.models.families.gemma2 import Gemma2
from lm_research.models.families.stack_pair import StackPair, T5GemmaConfig, head_weights, stack_weights
from lm_research.models.layer_spec import LayerSpec


class T5Gemma(StackPair, Gemma2):
    """An encoder-decoder of two Gemma 2 stacks (Zhang et al. 2025)."""

    # Zhang et al. 2025, table 1, and the released configuration; "9b-2b" has stacks of different widths.
    sizes = {
        name: dict(num_layers=n, hidden_size=d, num_heads=h, num_kv_heads=g, head_size=k, intermediate_size=f)
        for name, (n, d, h, g, k, f) in {
            "small": (8, 512, 8, 8, 64, 1024),
            "base": (12, 768, 12, 12, 64, 2048),
            "large": (24, 1024, 16, 16, 64, 2816),
            "ml": (26, 1152, 4, 4, 256, 6912),
            "xl": (24, 2048, 32, 32, 64, 5120),
            "2b-2b": (26, 2304, 8, 4, 256, 9216),
            "9b-9b": (42, 3584, 16, 8, 256, 14336),
        }.items()
    }
    model_types = {"t5gemma": "T5Gemma"}
    classes = {**StackPair.classes, "EncoderModel": "none"}
    encoder_classes = ("EncoderModel",)
    hides_padding = True
    _stack_type = "t5_gemma_module"

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        if hf.get("is_encoder_decoder") is False and "T5GemmaEncoderModel" not in (hf.get("architectures") or ()):
            raise PretrainedError(
                "config.json: is_encoder_decoder is false, a classifier of the encoder's states, which is not supported for this family."
            )
        return super().from_hf(hf, names)

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        return (*stack_weights("encoder", "@encoder."), *stack_weights("decoder", "@decoder."), *head_weights())

    @override
    def _to_both_sides(self, spec: LayerSpec) -> LayerSpec:
        return dataclasses.replace(spec, window=2 * spec.window)

    @override
    def _from_both_sides(self, spec: LayerSpec) -> LayerSpec:
        return dataclasses.replace(spec, window=spec.window // 2)


FAMILIES.register("t5gemma", T5GemmaConfig)(T5Gemma())
