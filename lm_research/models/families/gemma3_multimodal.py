"""Gemma 3 with a vision tower (Gemma Team 2025, arXiv:2503.19786): its text model, in the layout of the released 4B, 12B and 27B.

Only texts are supported: tensors of the vision tower are kept and written back, and not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Object
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import ParamMapping, check_others, given, tensor
from lm_research.models.families.gemma2 import GemmaConfig
from lm_research.models.families.gemma3 import Gemma3


class Gemma3Multimodal(Gemma3):
    """The text model of Gemma 3 in the files of models that also read images (Gemma Team 2025)."""

    sizes: dict[str, Any] = {}
    model_types = {"gemma3": "Gemma3"}
    packed_positions = "always"  # its masks are made before there is a cache
    classes = {"ForConditionalGeneration": "causal_lm", "ForSequenceClassification": "classification"}
    base_prefix, other_prefixes = "language_model.model.", ("model.language_model.",)  # the second in memory since 4.52
    modules = (
        (r"^language_model\.lm_head\.", ("lm_head.",)),
        (r"^language_model\.model\.", ("model.language_model.",)),
    )
    unread = (r"^(model\.)?vision_tower\.", r"^(model\.)?multi_modal_projector\.")

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        check_others(hf, {"text_config": Object})
        text = given(hf, "text_config", {})
        outer = {"tie_word_embeddings": given(hf, "tie_word_embeddings", True)}
        # The class that writes does not cap its logits, whatever the text model's key says.
        return super().from_hf({**text, **outer, "final_logit_softcapping": None}, names)

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        text = super().to_hf(arch) | {"model_type": next(iter(Gemma3.model_types))}
        tied = text.pop("tie_word_embeddings")
        return {"model_type": next(iter(self.model_types)), "text_config": text, "tie_word_embeddings": tied}

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        return (
            *super().weights(arch, head),
            *tensor("next_token/table", "language_model.lm_head.weight", "lm_head.weight"),
        )


FAMILIES.register("gemma3_multimodal", GemmaConfig)(Gemma3Multimodal())
