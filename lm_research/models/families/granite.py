"""Granite (IBM 2024): Llama with factors on embeddings, scores, branches and logits, after muP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta
from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import ConfigField, given
from lm_research.models.families.llama_like import LlamaLike

_Factor = Annotated[float, Meta(gt=0, le=1e9)]


class Granite(LlamaLike):
    """A decoder with Llama's layers, and factors on embeddings, scores, branches and logits (IBM 2024)."""

    # The released models' config.json (granite-3.1).
    sizes = {
        "2b": dict(num_layers=40, hidden_size=2048, num_heads=32, num_kv_heads=8, intermediate_size=8192),
        "8b": dict(num_layers=40, hidden_size=4096, num_heads=32, num_kv_heads=8, intermediate_size=12800),
    }
    run_traits = {**LlamaLike.run_traits, "norm_epsilon": 1e-5, "tied": True, "embedding_scale": 12.0}
    model_types = {"granite": "Granite"}
    classes = {"ForCausalLM": "causal_lm", "Model": "none"}
    config_fields = (*LlamaLike.config_fields, ConfigField("embedding_scale", "embedding_multiplier", 1.0))
    other_keys = {
        **LlamaLike.other_keys,
        "attention_bias": bool,
        "mlp_bias": bool,
        "residual_multiplier": _Factor,
        "attention_multiplier": _Factor,
        "logits_scaling": _Factor,
    }

    @override
    def run_fields(self, config: Any) -> Mapping[str, Any]:
        width = config.head_size or config.hidden_size // config.num_heads
        # As in the released models, whose logits are divided by 8 at a width of 2,048 and by 16 at 4,096.
        scales = dict(residual_scale=0.22, attention_scale=1 / width, logit_scale=min(1.0, 256 / config.hidden_size))
        return {**self.run_traits, **scales}

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        return super().read(hf) | dict(
            residual_scale=given(hf, "residual_multiplier", 1.0),
            attention_scale=given(hf, "attention_multiplier", 1.0),
            logit_scale=1 / given(hf, "logits_scaling", 1.0),
        )

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        last = arch.layer_specs[-1]
        return super().to_hf(arch) | dict(
            residual_multiplier=last.residual_scale,
            attention_multiplier=last.score_scale,
            logits_scaling=1 / arch.logit_scale,
        )


FAMILIES.register("granite")(Granite())
