"""StarCoder2 (Lozhkov et al. 2024, arXiv:2402.19173): rotary positions, LayerNorm, plain feed-forward layers, biases, a window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Rate
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import ConfigField, ParamMapping, given, with_defaults, without
from lm_research.models.families.decoder_weights import decoder_weights
from lm_research.models.families.layer_kinds import KEYS
from lm_research.models.families.llama_like import LlamaLike


class StarCoder2(LlamaLike):
    """A decoder with rotary positions, a window, and the layers and biases of GPT-2 (Lozhkov et al. 2024)."""

    # Lozhkov et al. 2024, table 8; the largest has a table of its own for predictions, as its released files do.
    sizes = {
        "3b": dict(num_layers=30, hidden_size=3072, num_heads=24, num_kv_heads=2, intermediate_size=12288),
        "7b": dict(num_layers=32, hidden_size=4608, num_heads=36, num_kv_heads=4, intermediate_size=18432),
        "15b": dict(
            num_layers=40,
            hidden_size=6144,
            num_heads=48,
            num_kv_heads=4,
            intermediate_size=24576,
            tie_word_embeddings=False,
        ),
    }
    traits = {**LlamaLike.traits, "norm_kind": "layer", "gated": False}
    run_traits = dict(activation="gelu_tanh", norm_epsilon=1e-5, tied=True, window=4096, rotary_theta=1e6)
    model_types = {"starcoder2": "Starcoder2"}
    classes = without(LlamaLike.classes, "ForQuestionAnswering")
    config_fields = (
        *with_defaults(
            [one for one in LlamaLike.config_fields if one.name != "rms_norm_eps"],
            {
                "vocab_size": 49152,
                "hidden_size": 3072,
                "intermediate_size": 12288,
                "num_hidden_layers": 30,
                "num_attention_heads": 24,
                "hidden_act": "gelu_pytorch_tanh",
                "max_position_embeddings": 4096,
                "initializer_range": 0.018042,
                "tie_word_embeddings": True,
            },
        ),
        ConfigField("norm_epsilon", "norm_epsilon", 1e-5),
        ConfigField("dropout_rate", "residual_dropout", 0.0),
    )
    other_keys = {
        **LlamaLike.other_keys,
        "use_bias": bool,
        "sliding_window": KEYS["sliding_window"],
        "embedding_dropout": Rate,
    }

    _defaults = {"num_key_value_heads": 2}

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        return super().read(hf) | dict.fromkeys(("qkv_bias", "output_bias", "mlp_bias"), given(hf, "use_bias", True))

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        extra = {"use_bias": arch.layers[-1].mlp_bias, "embedding_dropout": arch.dropout_rate}
        return super().to_hf(arch) | extra

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        return decoder_weights("score", mlp=("c_fc", "c_proj"))


FAMILIES.register("starcoder2")(StarCoder2())
