"""Llama (Touvron et al. 2023, arXiv:2302.13971)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.config import ModelConfig, key
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES, Family
from lm_research.models.families.llama_like import LlamaLike


@dataclasses.dataclass(frozen=True)
class LlamaConfig(ModelConfig):
    """Model section of Llama."""

    variant: str | None = key(
        None,
        "An earlier spelling of model.family=mistral and model.family=qwen2; None is llama.",
        choices=("llama", "mistral", "qwen2"),
    )


class Llama(LlamaLike):
    """A decoder with rotary positions and gated layers (Touvron et al. 2023)."""

    # Touvron et al. 2023, table 2 and the released weights; Grattafiori et al. 2024, table 3.
    sizes = {
        "llama_7b": dict(num_layers=32, hidden_size=4096, num_heads=32, intermediate_size=11008),
        "llama_13b": dict(num_layers=40, hidden_size=5120, num_heads=40, intermediate_size=13824),
        "llama3_8b": dict(num_layers=32, hidden_size=4096, num_heads=32, num_kv_heads=8, intermediate_size=14336),
    }
    model_types = {"llama": "Llama"}
    other_keys = {**LlamaLike.other_keys, "attention_bias": bool, "mlp_bias": bool}

    @override
    def run_fields(self, config: LlamaConfig) -> Mapping[str, Any]:
        relative = FAMILIES[config.variant] if config.variant else self
        return {**relative.traits, **relative.run_traits}

    @override
    def stored_as(self, arch: Architecture) -> Family:
        last = arch.layers[-1]
        if last.query_bias and not last.output_bias:
            return FAMILIES["qwen2"]
        return FAMILIES["mistral"] if last.window else self


FAMILIES.register("llama", LlamaConfig)(Llama())
