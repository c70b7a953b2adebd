"""OPT (Zhang et al. 2022, arXiv:2205.01068): a decoder with learned positions that count the tokens which the attention mask shows.

The 350M model is post-norm, and its embeddings are narrower than its layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Rate, Size
from lm_research.models.architecture import Architecture
from lm_research.models.families.bart_weights import stack
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import (
    ConfigField,
    FactorizedConfig,
    ParamMapping,
    dense,
    given,
    norm,
    tensor,
    without,
)
from lm_research.models.families.plain_decoder import PlainDecoder, classifier, size


class OPT(PlainDecoder):
    """A decoder with learned positions of the tokens that the attention mask shows (Zhang et al. 2022)."""

    # Zhang et al. 2022, table 1; the released 350M model's config.json.
    sizes = {
        "125m": size(12, 768, 12),
        "350m": size(24, 1024, 16, embedding_size=512, norm_position="post"),
        "1.3b": size(24, 2048, 32),
        "2.7b": size(32, 2560, 32),
        "6.7b": size(32, 4096, 32),
        "13b": size(40, 5120, 40),
        "30b": size(48, 7168, 56),
        "66b": size(64, 9216, 72),
        "175b": size(96, 12288, 96),
    }
    # Two rows of the position table come before position 0; the first is that of tokens which are not shown.
    traits = PlainDecoder.traits | dict(position_offset=2, count_masked=False)
    run_traits = dict(activation="relu", pad_id=1)
    frozen_padding = True

    model_types = {"opt": "OPT"}
    classes = without(PlainDecoder.classes, "ForTokenClassification")
    config_fields = (
        ConfigField("vocab_size", "vocab_size", 50272),
        ConfigField("hidden_size", "hidden_size", 768),
        ConfigField("num_layers", "num_hidden_layers", 12),
        ConfigField("num_heads", "num_attention_heads", 12),
        ConfigField("intermediate_size", "ffn_dim", 3072),
        ConfigField("max_length", "max_position_embeddings", 2048),
        ConfigField("activation", "activation_function", "relu"),
        ConfigField("dropout_rate", "dropout", 0.1),
        ConfigField("attention_dropout_rate", "attention_dropout", 0.0),
        ConfigField("init_std", "init_std", 0.02),
        ConfigField("tied", "tie_word_embeddings", True),
        ConfigField("pad_id", "pad_token_id", 1),
        ConfigField("norm_scale", "layer_norm_elementwise_affine", True),
    )
    other_keys = {
        "word_embed_proj_dim": Size,
        "do_layer_norm_before": bool,
        "_remove_final_layer_norm": bool,
        "enable_bias": bool,
        "layerdrop": Rate,
    }
    base_prefix = "model."

    @override
    def run_fields(self, config: FactorizedConfig) -> dict[str, Any]:
        return self.run_traits | _projections(config.embedding_size or config.hidden_size, config.hidden_size)

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields, biased = super().read(hf), given(hf, "enable_bias", True)
        return {
            **fields,
            **_projections(hf.get("word_embed_proj_dim") or fields["hidden_size"], fields["hidden_size"]),
            "norm": "pre" if given(hf, "do_layer_norm_before", True) else "post",
            "norm_bias": fields["norm_scale"],
            "norm_output": not hf.get("_remove_final_layer_norm"),
            "qkv_bias": biased,
            "output_bias": biased,
            "mlp_bias": biased,
        }

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        last = arch.layers[-1]
        return super().to_hf(arch) | {
            "word_embed_proj_dim": arch.embedding_width,
            "do_layer_norm_before": last.residual == "pre",
            "_remove_final_layer_norm": not arch.norm_output,
            "enable_bias": last.output_bias,
        }

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        return (
            *tensor("decoder/embeddings/tokens", "@decoder.embed_tokens.weight"),
            *stack("decoder"),
            *dense("decoder/embeddings/projection", "@decoder.project_in"),
            *norm("decoder/final_norm", "@decoder.final_layer_norm"),
            *dense("decoder/output_projection", "@decoder.project_out"),
            *tensor("next_token/table", "lm_head.weight"),
            *classifier(head),
        )


def _projections(narrow: int, width: int) -> dict[str, Any]:
    """Fields of embeddings of width `narrow`, which are projected to the stack's width, as are its final states back."""
    projected = narrow != width
    return dict(
        embedding_size=narrow if projected else 0,
        embedding_projection=projected,
        project_tokens=projected,
        output_projection=projected,
    )


FAMILIES.register("opt", FactorizedConfig)(OPT())
