"""BLOOM (Le Scao et al. 2022, arXiv:2211.05100): ALiBi instead of positions, and a norm after the embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import ConfigField, ParamMapping, check_supported, norm, tensor
from lm_research.models.families.plain_decoder import PlainDecoder, classifier, fused_block, size


class Bloom(PlainDecoder):
    """A pre-norm decoder with ALiBi and normalized embeddings (Le Scao et al. 2022)."""

    # Le Scao et al. 2022, table 3; vocabulary of 250,880.
    sizes = {
        "560m": size(24, 1024, 16),
        "1b1": size(24, 1536, 16),
        "1b7": size(24, 2048, 16),
        "3b": size(30, 2560, 32),
        "7b1": size(30, 4096, 32),
        "176b": size(70, 14336, 112),
    }
    traits = PlainDecoder.traits | dict(positions="alibi", embedding_norm=True, activation="gelu_tanh")

    model_types = {"bloom": "Bloom"}
    config_fields = (
        ConfigField("vocab_size", "vocab_size", 250880),
        ConfigField("hidden_size", "hidden_size", 64, ("n_embed",)),
        ConfigField("num_layers", "n_layer", 2, ("num_hidden_layers",)),
        ConfigField("num_heads", "n_head", 8, ("num_attention_heads",)),
        ConfigField("dropout_rate", "hidden_dropout", 0.0),
        ConfigField("attention_dropout_rate", "attention_dropout", 0.0),
        ConfigField("norm_epsilon", "layer_norm_epsilon", 1e-5),
        ConfigField("init_std", "initializer_range", 0.02),
        ConfigField("tied", "tie_word_embeddings", True),
        ConfigField("pad_id", "pad_token_id", -1),
    )
    other_keys = {"apply_residual_connection_post_layernorm": bool}

    _inner_ratio = 4

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().read(hf)
        fields["intermediate_size"] = 4 * fields["hidden_size"]
        check_supported(hf, {"n_inner": fields["intermediate_size"]})
        fields["norm"] = "normed" if hf.get("apply_residual_connection_post_layernorm") else "pre"
        return fields | {"max_length": 0, "count_masked": False}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        return super().to_hf(arch) | {"apply_residual_connection_post_layernorm": arch.layers[0].residual == "normed"}

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        return (
            *tensor("decoder/embeddings/tokens", "@word_embeddings.weight"),
            *norm("decoder/embeddings/norm", "@word_embeddings_layernorm"),
            *fused_block(arch, "@h.{}", "self_attention", "input_layernorm", "post_attention_layernorm"),
            *norm("decoder/final_norm", "@ln_f"),
            *tensor("next_token/table", "lm_head.weight"),
            *classifier(head),
        )


FAMILIES.register("bloom")(Bloom())
