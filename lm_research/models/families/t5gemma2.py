"""T5Gemma 2 (Zhang et al. 2025, arXiv:2512.14856): encoder-decoders of two Gemma 3 stacks, whose decoder attends to both sides in one softmax.

Only texts are supported: tensors of the vision tower are kept and written back, and not used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Object
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import ParamMapping, check_others, given
from lm_research.models.families.gemma3 import Gemma3
from lm_research.models.families.stack_pair import StackPair, T5GemmaConfig, head_weights, stack_weights
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.limits import Token

END_OF_IMAGE = 256_000  # the token that follows an image, whose embedding is not in the table


class T5Gemma2(StackPair, Gemma3):
    """An encoder-decoder of two Gemma 3 stacks with merged attention (Zhang et al. 2025)."""

    sizes = {f"{name}-{name}": Gemma3.sizes[name] for name in ("270m", "1b", "4b")}
    model_types = {"t5gemma2": "T5Gemma2"}
    classes = StackPair.classes
    redundant = (r"decoder\.embed_tokens\.eoi_embedding$",)  # tied to the encoder's
    modules = (
        (r"^(model\.)?encoder\.(?!text_model\.|vision_tower\.|multi_modal_projector\.)", (r"\1encoder.text_model.",)),
    )
    unread = (r"vision_tower\.", r"multi_modal_projector\.")
    _stack_type = "t5gemma2_decoder"
    _shared = True

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        encoder = stack_weights("encoder", "@encoder.", "@encoder.text_model.")
        return (*encoder, *stack_weights("decoder", "@decoder."), *head_weights())

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        arch, token = super().from_hf(hf, names), given(given(hf, "encoder", {}), "eoi_token_index", END_OF_IMAGE)
        return arch.replace(separate_token=token, encoder=arch.source.replace(separate_token=token))

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        hf = super().to_hf(arch)
        hf["encoder"]["eoi_token_index"] = arch.separate_token
        return hf

    @override
    def _joined(self, encoder: Architecture, decoder: Architecture) -> Architecture:
        arch = super()._joined(encoder.replace(separate_token=END_OF_IMAGE), decoder)
        return arch.replace(separate_token=END_OF_IMAGE, merged_attention=True)

    @override
    def _parts(self, hf: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        encoder, decoder = super()._parts(hf)
        check_others(encoder, {"text_config": Object, "eoi_token_index": Token}, "config.json: encoder")
        return given(encoder, "text_config", {}), decoder

    @override
    def _written_parts(self, encoder: dict[str, Any], decoder: dict[str, Any]) -> dict[str, Any]:
        text = {**encoder, "model_type": "t5gemma2_text"}
        return {"encoder": {"model_type": "t5gemma2_encoder", "text_config": text}, "decoder": decoder}

    @override
    def _to_both_sides(self, spec: LayerSpec) -> LayerSpec:
        """Of w positions in total, (w - 1) // 2 are before the query's and w // 2 after it."""
        size = spec.window
        return dataclasses.replace(spec, window=max(1, size - 1), window_ahead=size // 2) if size else spec

    @override
    def _from_both_sides(self, spec: LayerSpec) -> LayerSpec:
        size = spec.window // 2 + spec.window_ahead + 1
        return dataclasses.replace(spec, window=size, window_ahead=-1) if spec.window else spec


FAMILIES.register("t5gemma2", T5GemmaConfig)(T5Gemma2())
