"""RoFormer (Su et al. 2021, arXiv:2104.09864): BERT with rotary positions, as released for Chinese."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Size
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.bert import Bert
from lm_research.models.families.common import (
    END_SUMMARY,
    ConfigField,
    FactorizedConfig,
    ParamMapping,
    dense,
    with_defaults,
    without,
)
from lm_research.models.families.encoder_weights import replaced, with_paths


class RoFormer(Bert):
    """BERT with rotary positions (Su et al. 2021)."""

    # The released models of ZhuiyiTechnology, roformer_chinese_small and _base; vocabulary of 50,000.
    sizes = {
        "small": dict(num_layers=6, hidden_size=384, num_heads=6, intermediate_size=1536),
        "base": Bert.sizes["base"],
    }
    # Positions count padding too, which changes results if values are rotated.
    traits = Bert.traits | dict(
        positions="rotary", rotary_interleaved=True, prompt_positions="slots", choice_pooling="end"
    )
    head = ""

    model_types = {"roformer": "RoFormer"}
    classes = {
        **without(Bert.classes, "ForPreTraining", "ForNextSentencePrediction", "LMHeadModel"),
        "ForCausalLM": "causal_lm",
    }
    config_fields = (
        *with_defaults(Bert.config_fields, {"vocab_size": 50000, "max_position_embeddings": 1536}),
        ConfigField("rotary_values", "rotary_value", False),
    )
    other_keys = {"embedding_size": Size}
    required = Bert.required | END_SUMMARY
    base_prefix = "roformer."
    unread = (*Bert.unread, r"embed_positions\.weight$")  # a table of sines

    @override
    def run_fields(self, config: FactorizedConfig) -> dict[str, Any]:
        size = config.embedding_size or config.hidden_size
        widths = dict(embedding_size=size, embedding_projection=size != config.hidden_size)
        return self.run_traits | widths | {"pooler_activation": self.run_traits["activation"]}

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().read(hf)
        size = hf.get("embedding_size") or fields["hidden_size"]
        widths = dict(embedding_size=size, embedding_projection=size != fields["hidden_size"])
        return fields | widths | {"pooler_activation": fields["activation"]}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        return super().to_hf(arch) | {"embedding_size": arch.embedding_width}

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        outer = dense("classifier", "classifier.out_proj") if head == "classification" else ()
        own = (
            *dense("encoder/embeddings/projection", "@embeddings_project"),
            *dense("pooler/dense", "classifier.dense"),
            *outer,
        )
        return replaced(super().weights(arch, head), with_paths(own, arch, head))


FAMILIES.register("roformer", FactorizedConfig)(RoFormer())
