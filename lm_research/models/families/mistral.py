"""Mistral (Jiang et al. 2023, arXiv:2310.06825): Llama with a window."""

from __future__ import annotations

from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import with_defaults
from lm_research.models.families.layer_kinds import KEYS
from lm_research.models.families.llama_like import LlamaLike


class Mistral(LlamaLike):
    """A decoder with Llama's layers, whose attention has a window (Jiang et al. 2023)."""

    # Jiang et al. 2023, table 1.
    sizes = {"7b": dict(num_layers=32, hidden_size=4096, num_heads=32, num_kv_heads=8, intermediate_size=14336)}
    run_traits = {**LlamaLike.run_traits, "window": 4096}
    model_types = {"mistral": "Mistral"}
    config_fields = with_defaults(
        LlamaLike.config_fields, {"intermediate_size": 14336, "max_position_embeddings": 131072}
    )
    other_keys = {**LlamaLike.other_keys, "sliding_window": KEYS["sliding_window"]}

    _defaults = {"num_key_value_heads": 8, "sliding_window": 4096}
    _span_prefix = "model."


FAMILIES.register("mistral")(Mistral())
