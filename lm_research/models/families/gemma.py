"""Gemma (Gemma Team 2024, arXiv:2403.08295): Llama's layers, with scales of norms stored as differences from 1.

Embeddings are tied to the output table, and multiplied with the root of their width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import with_defaults, without
from lm_research.models.families.llama_like import LlamaLike


class Gemma(LlamaLike):
    """A decoder with Llama's layers, tied tables and scaled embeddings (Gemma Team 2024)."""

    # Gemma Team 2024, table 1.
    sizes = {
        "2b": dict(
            num_layers=18, hidden_size=2048, num_heads=8, num_kv_heads=1, head_size=256, intermediate_size=16384
        ),
        "7b": dict(num_layers=28, hidden_size=3072, num_heads=16, head_size=256, intermediate_size=24576),
    }
    traits = {**LlamaLike.traits, "norm_offset": 1.0, "round_embedding_scale": True, "mlp_bias": False}
    run_traits = dict(activation="gelu_tanh", norm_epsilon=1e-6, qkv_bias=False, output_bias=False, tied=True)

    model_types = {"gemma": "Gemma"}
    classes = without(LlamaLike.classes, "ForQuestionAnswering")
    config_fields = with_defaults(
        LlamaLike.config_fields,
        {
            "vocab_size": 256000,
            "hidden_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "intermediate_size": 24576,
            "hidden_act": "gelu_pytorch_tanh",
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
        },
    )
    other_keys = {**LlamaLike.other_keys, "attention_bias": bool}
    required = {"use_bidirectional_attention": False}

    _defaults = {"num_key_value_heads": 16, "head_dim": 256}

    @override
    def run_fields(self, config: Any) -> Mapping[str, Any]:
        return {**self.run_traits, "embedding_scale": config.hidden_size**0.5}

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        if (
            hf.get("hidden_act") == "gelu"
        ):  # the first files have this name, but the models were trained with the approximation
            hf = {**hf, "hidden_act": "gelu_pytorch_tanh"}
        fields = super().read(hf)
        return fields | {"embedding_scale": fields["hidden_size"] ** 0.5}


FAMILIES.register("gemma")(Gemma())
