"""Helium (Kyutai 2025): Llama whose rotated pairs are adjacent, and whose output projection has no bias."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import with_defaults, without
from lm_research.models.families.llama_like import LlamaLike
from lm_research.models.families.plain_decoder import check_sizes


class Helium(LlamaLike):
    """A decoder with Llama's layers, whose rotary positions rotate adjacent elements (Kyutai 2025)."""

    # The released preview's config.json, whose values are the defaults of its class.
    sizes = {"2b": dict(num_layers=24, hidden_size=2560, num_heads=20, intermediate_size=7040)}
    traits = {**LlamaLike.traits, "rotary_interleaved": True, "output_bias": False}
    run_traits = {**LlamaLike.run_traits, "norm_epsilon": 1e-8, "rotary_theta": 1e5}
    model_types = {"helium": "Helium"}
    classes = without(LlamaLike.classes, "ForQuestionAnswering")
    config_fields = with_defaults(
        LlamaLike.config_fields,
        {
            "vocab_size": 48000,
            "hidden_size": 2560,
            "intermediate_size": 7040,
            "num_hidden_layers": 24,
            "num_attention_heads": 20,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-8,
            "pad_token_id": 3,
        },
    )
    other_keys = {**LlamaLike.other_keys, "attention_bias": bool, "mlp_bias": bool}

    _defaults = {"num_key_value_heads": 20, "head_dim": 128, "rope_theta": 1e5}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        check_sizes(self, arch, {"num_heads x head_size": (arch.num_heads * arch.head_width, arch.hidden_size)})
        return super().to_hf(arch) | {"attention_bias": arch.layers[-1].query_bias}


FAMILIES.register("helium")(Helium())
