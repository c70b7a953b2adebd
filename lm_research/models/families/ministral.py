"""Ministral (Mistral AI 2024): Mistral with windows of 32,768 positions in three of four layers."""

from __future__ import annotations

from lm_research.models.families.base import FAMILIES
from lm_research.models.families.layer_kinds import KEYS
from lm_research.models.families.llama_like import LlamaLike
from lm_research.models.families.mistral import Mistral


class Ministral(Mistral):
    """A decoder with Llama's layers, whose attention has windows in some of them (Mistral AI 2024)."""

    # The released model's params.json.
    sizes = {
        "8b": dict(
            num_layers=36, hidden_size=4096, num_heads=32, num_kv_heads=8, head_size=128, intermediate_size=12288
        )
    }
    run_traits = {
        **LlamaLike.run_traits,
        "rotary_theta": 1e8,
        "pattern": ({}, *[{"attention": "window", "window": 32768}] * 3),
    }
    model_types = {"ministral": "Ministral"}
    other_keys = {**LlamaLike.other_keys, **KEYS}

    _span_prefix = "transformer."


FAMILIES.register("ministral")(Ministral())
