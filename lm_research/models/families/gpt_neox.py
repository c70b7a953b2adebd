"""GPT-NeoX (Black et al. 2022, arXiv:2204.06745) and Pythia (Biderman et al. 2023, arXiv:2304.01373).

Attention and feed-forward layer in parallel after a norm each, and rotary positions in a quarter of each head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families import rotary
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import ConfigField, ParamMapping, given, norm, tensor, without
from lm_research.models.families.plain_decoder import PlainDecoder, classifier, fused_block, size
from lm_research.models.rotary import SHARE


class GPTNeoX(PlainDecoder):
    """A decoder whose attention and feed-forward layer run in parallel, with partly rotated heads: Pythia too (Black et al. 2022)."""

    # Biderman et al. 2023, table 1; Black et al. 2022, section 2.
    sizes = {
        "pythia_70m": size(6, 512, 8),
        "pythia_160m": size(12, 768, 12),
        "pythia_410m": size(24, 1024, 16),
        "pythia_1b": size(16, 2048, 8),
        "pythia_1.4b": size(24, 2048, 16),
        "pythia_2.8b": size(32, 2560, 32),
        "pythia_6.9b": size(32, 4096, 32),
        "pythia_12b": size(36, 5120, 40),
        "20b": size(44, 6144, 64),
    }
    traits = PlainDecoder.traits | dict(positions="rotary")
    run_traits = dict(activation="gelu", norm="parallel", rotary_fraction=0.25, tied=False)

    model_types = {"gpt_neox": "GPTNeoX"}
    packed_positions = "uncached"
    config_fields = (
        ConfigField("vocab_size", "vocab_size", 50432),
        ConfigField("hidden_size", "hidden_size", 6144),
        ConfigField("num_layers", "num_hidden_layers", 44),
        ConfigField("num_heads", "num_attention_heads", 64),
        ConfigField("intermediate_size", "intermediate_size", 24576),
        ConfigField("max_length", "max_position_embeddings", 2048),
        ConfigField("activation", "hidden_act", "gelu"),
        ConfigField("dropout_rate", "hidden_dropout", 0.0),
        ConfigField("attention_dropout_rate", "attention_dropout", 0.0),
        ConfigField("norm_epsilon", "layer_norm_eps", 1e-5),
        ConfigField("init_std", "initializer_range", 0.02),
        ConfigField("tied", "tie_word_embeddings", False),
        ConfigField("pad_id", "pad_token_id", -1),
    )
    other_keys = {
        "use_parallel_residual": bool,
        "attention_bias": bool,
        "rotary_pct": float,
        "rotary_emb_base": rotary.KEYS["rope_theta"],
        **without(rotary.KEYS, "rope_theta", SHARE),
    }
    base_prefix = "gpt_neox."
    modules = ((r"^embed_out\.", ("lm_head.",)),)
    redundant = (r"attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",)

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().read(hf)
        named = {**hf, "rope_theta": hf.get("rotary_emb_base"), SHARE: given(hf, "rotary_pct", 0.25)}
        biased = given(hf, "attention_bias", True)
        return {
            **fields,
            **rotary.read_rotary(named, max_length=fields["max_length"], fraction=0.25),
            "norm": "parallel" if given(hf, "use_parallel_residual", True) else "pre",
            "qkv_bias": biased,
            "output_bias": biased,
        }

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        last = arch.layers[-1]
        return super().to_hf(arch) | {
            "use_parallel_residual": last.residual == "parallel",
            "attention_bias": last.output_bias,
            "rope_parameters": {SHARE: last.rotary_fraction} | rotary.write_rotary(last),
        }

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        return (
            *tensor("decoder/embeddings/tokens", "@embed_in.weight"),
            *fused_block(arch, "@layers.{}", "attention", "input_layernorm", "post_attention_layernorm"),
            *norm("decoder/final_norm", "@final_layer_norm"),
            *tensor("next_token/table", "embed_out.weight", "lm_head.weight"),
            *classifier(head),
        )


FAMILIES.register("gpt_neox")(GPTNeoX())
