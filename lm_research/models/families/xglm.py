"""XGLM (Lin et al. 2021, arXiv:2112.10668): a multilingual pre-norm decoder with sinusoidal positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Rate
from lm_research.config import ModelConfig
from lm_research.models.architecture import Architecture
from lm_research.models.families.bart_weights import stack
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import ConfigField, ParamMapping, given, tensor
from lm_research.models.families.plain_decoder import PlainDecoder, size


class XGLM(PlainDecoder):
    """A pre-norm decoder with sinusoidal positions and scaled embeddings (Lin et al. 2021)."""

    # Lin et al. 2021, table 2, and the released models' config.json files; vocabulary of 256,008.
    sizes = {
        "564m": size(24, 1024, 16),
        "1.7b": size(24, 2048, 16),
        "2.9b": size(48, 2048, 16),
        "4.5b": size(48, 2048, 16, intermediate_size=16384),
        "7.5b": size(32, 4096, 32),
    }
    # Position 0 is row 2 of the sinusoids, in which the row of the padding token is 0.
    traits = PlainDecoder.traits | dict(positions="sinusoidal", last_wavelength=True, position_offset=2)
    run_traits = dict(activation="gelu", pad_id=1)
    frozen_padding = True

    model_types = {"xglm": "XGLM"}
    classes = {"ForCausalLM": "causal_lm", "Model": "none"}
    config_fields = (
        ConfigField("vocab_size", "vocab_size", 256008),
        ConfigField("hidden_size", "d_model", 1024, ("hidden_size",)),
        ConfigField("num_layers", "num_layers", 24, ("num_hidden_layers",)),
        ConfigField("num_heads", "attention_heads", 16, ("num_attention_heads",)),
        ConfigField("intermediate_size", "ffn_dim", 4096),
        ConfigField("max_length", "max_position_embeddings", 2048),
        ConfigField("activation", "activation_function", "gelu"),
        ConfigField("dropout_rate", "dropout", 0.1),
        ConfigField("attention_dropout_rate", "attention_dropout", 0.1),
        ConfigField("activation_dropout_rate", "activation_dropout", 0.0),
        ConfigField("init_std", "init_std", 0.02),
        ConfigField("tied", "tie_word_embeddings", True),
        ConfigField("pad_id", "pad_token_id", 1),
    )
    other_keys = {"scale_embedding": bool, "layerdrop": Rate}
    required = {"add_cross_attention": False}
    base_prefix = "model."
    redundant = (r"embed_positions\.weights$",)  # in older files

    @override
    def run_fields(self, config: ModelConfig) -> dict[str, Any]:
        return self.run_traits | {"embedding_scale": config.hidden_size**0.5}

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().read(hf)
        scale = fields["hidden_size"] ** 0.5 if given(hf, "scale_embedding", True) else 1.0
        return fields | {"embedding_scale": scale}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        return super().to_hf(arch) | {"scale_embedding": arch.embedding_scale != 1.0}

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        return (
            *tensor("decoder/embeddings/tokens", "@embed_tokens.weight"),
            *stack("decoder", "@"),
            *tensor("next_token/table", "lm_head.weight"),
        )


FAMILIES.register("xglm")(XGLM())
