"""Phi-1, Phi-1.5 and Phi-2 (Li et al. 2023, arXiv:2309.05463): parallel branches, rotation of a part of each head, biases everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Rate
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import ConfigField, ParamMapping, norm, tensor, with_defaults, without
from lm_research.models.families.decoder_weights import decoder_weights
from lm_research.models.families.llama_like import LlamaLike
from lm_research.models.rotary import SHARE


class Phi(LlamaLike):
    """A decoder with parallel branches and rotary positions for half of each head (Li et al. 2023)."""

    # The released models' config.json; phi-1 and phi-1.5 have one size.
    sizes = {
        "1.3b": dict(num_layers=24, hidden_size=2048, num_heads=32, intermediate_size=8192),
        "2.7b": dict(num_layers=32, hidden_size=2560, num_heads=32, intermediate_size=10240),
    }
    traits = {
        **LlamaLike.traits,
        "norm": "parallel",
        "shared_norm": True,
        "norm_kind": "layer",
        "gated": False,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "head_bias": True,
        "train_head_bias": True,
    }
    run_traits = dict(activation="gelu_tanh", norm_epsilon=1e-5, tied=False, rotary_fraction=0.5)
    model_types = {"phi": "Phi"}
    classes = without(LlamaLike.classes, "ForQuestionAnswering")
    config_fields = (
        *with_defaults(
            [one for one in LlamaLike.config_fields if one.name != "rms_norm_eps"],
            {
                "vocab_size": 51200,
                "hidden_size": 2048,
                "intermediate_size": 8192,
                "num_hidden_layers": 24,
                "hidden_act": "gelu_new",
            },
        ),
        ConfigField("norm_epsilon", "layer_norm_eps", 1e-5),
        ConfigField("dropout_rate", "resid_pdrop", 0.0),
    )
    other_keys = {**LlamaLike.other_keys, "qk_layernorm": bool, "embd_pdrop": Rate}

    _defaults = {SHARE: 0.5}

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        return super().read(hf) | {"query_key_norm": "head" if self._get(hf, "qk_layernorm") else "none"}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        hf, last = super().to_hf(arch), arch.layers[-1]
        hf["rope_parameters"].setdefault(SHARE, last.rotary_fraction)
        return hf | {"qk_layernorm": last.query_key_norm != "none", "embd_pdrop": arch.dropout_rate}

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        ours, theirs = "decoder/layers/attention", "@layers.{}.self_attn"
        return (
            *decoder_weights("score", final_norm="final_layernorm", output="dense", mlp=("fc1", "fc2")),
            *norm(f"{ours}/query_norm", f"{theirs}.q_layernorm"),
            *norm(f"{ours}/key_norm", f"{theirs}.k_layernorm"),
            *tensor("next_token/bias", "lm_head.bias"),
        )


FAMILIES.register("phi")(Phi())
