"""OLMo 2 (Walsh et al. 2025, arXiv:2501.00656): Llama with norms of queries and keys, and of each branch's output instead of its input."""

from __future__ import annotations

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import ParamMapping, with_defaults, without
from lm_research.models.families.decoder_weights import decoder_weights
from lm_research.models.families.llama_like import LlamaLike

_NORMS = {"attention_norm": "post_attention_layernorm", "feed_forward_norm": "post_feedforward_layernorm"}


class OLMo2(LlamaLike):
    """A decoder with Llama's layers, whose branches normalize their outputs, and queries and keys (Walsh et al. 2025)."""

    # Walsh et al. 2025, table 2, and the released 1B's config.json.
    sizes = {
        "1b": dict(num_layers=16, hidden_size=2048, num_heads=16, intermediate_size=8192),
        "7b": dict(num_layers=32, hidden_size=4096, num_heads=32, intermediate_size=11008),
        "13b": dict(num_layers=40, hidden_size=5120, num_heads=40, intermediate_size=13824),
        "32b": dict(num_layers=64, hidden_size=5120, num_heads=40, num_kv_heads=8, intermediate_size=27648),
    }
    traits = {**LlamaLike.traits, "norm": "output", "query_key_norm": "projection"}
    run_traits = {**LlamaLike.run_traits, "rotary_theta": 5e5}
    model_types = {"olmo2": "Olmo2"}
    classes = without(LlamaLike.classes, "ForTokenClassification", "ForQuestionAnswering")
    config_fields = with_defaults(
        LlamaLike.config_fields, {"vocab_size": 50304, "rms_norm_eps": 1e-5, "pad_token_id": 1}
    )
    other_keys = {**LlamaLike.other_keys, "attention_bias": bool}

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        return decoder_weights("score", norms=_NORMS)


FAMILIES.register("olmo2")(OLMo2())
