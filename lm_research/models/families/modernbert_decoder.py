"""Ettin's decoders (Weller et al. 2025, arXiv:2507.11412): ModernBERT's blocks with causal attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import ConfigField, ParamMapping, attention, without
from lm_research.models.families.modernbert import ModernBert, ModernBertConfig
from lm_research.models.families.modernbert_format import ETTIN, FIELDS, OTHER_KEYS, blocks_and_heads


class ModernBertDecoder(ModernBert):
    """ModernBERT's blocks with causal attention, as in Ettin's decoders (Weller et al. 2025)."""

    sizes = ETTIN
    traits = ModernBert.traits | dict(causal=True, head_transform=True, token_pooler=False, pooling="last")
    run_traits = ModernBert.run_traits | {"classifier_bias": False}

    model_types = {"modernbert-decoder": "ModernBertDecoder"}
    packed_positions = "uncached"
    classes = {"ForCausalLM": "causal_lm", "ForSequenceClassification": "classification", "Model": "none"}
    config_fields = (*FIELDS, ConfigField("classifier_bias", "classifier_bias", False))
    other_keys = without(OTHER_KEYS, "classifier_pooling", "sparse_prediction")
    required: Mapping[str, Any] = {}
    _window_share = 2

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        projections = attention("decoder/layers/attention", "@layers.{}.attn", "q_proj", "k_proj", "v_proj", "Wo")
        return (*projections, *blocks_and_heads("decoder", "next_token", "lm_head", head))


FAMILIES.register("modernbert_decoder", ModernBertConfig)(ModernBertDecoder())
