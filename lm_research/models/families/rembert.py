"""RemBERT (Chung et al. 2020, arXiv:2010.12821): narrow input embeddings, and wide output embeddings that are not kept afterwards."""

from __future__ import annotations

import dataclasses
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Rate
from lm_research.config import key
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.bert import Bert
from lm_research.models.families.common import (
    ConfigField,
    FactorizedConfig,
    ParamMapping,
    dense,
    norm,
    tensor,
    with_defaults,
    without,
    write_keys,
)
from lm_research.models.families.encoder_weights import stack, with_paths

DEFAULTS = {
    "vocab_size": 250300,
    "hidden_size": 1152,
    "num_hidden_layers": 32,
    "num_attention_heads": 18,
    "intermediate_size": 4608,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@dataclasses.dataclass(frozen=True)
class RemBertConfig(FactorizedConfig):
    """Model section of RemBERT."""

    output_embedding_size: int | None = key(
        None, "Width of the output embeddings; None uses embedding_size.", low=1, high=2**20
    )


class RemBert(Bert):
    """BERT with narrow input and wide output embeddings (Chung et al. 2020)."""

    # Chung et al. 2020, table 6; vocabulary of 250,300.
    sizes = {
        "base": dict(
            num_layers=32,
            hidden_size=1152,
            num_heads=18,
            intermediate_size=4608,
            embedding_size=256,
            output_embedding_size=1664,
        )
    }
    traits = Bert.traits | dict(embedding_projection=True, tied=False)
    head = ""

    model_types = {"rembert": "RemBert"}
    classes = {
        **without(Bert.classes, "ForPreTraining", "ForNextSentencePrediction", "LMHeadModel"),
        "ForCausalLM": "causal_lm",
    }
    config_fields = (
        ConfigField("embedding_size", "input_embedding_size", 256),
        ConfigField("output_embedding_size", "output_embedding_size", 1664),
        *with_defaults((field for field in Bert.config_fields if field.field != "tied"), DEFAULTS),
    )
    other_keys = {"classifier_dropout_prob": Rate}
    base_prefix = "rembert."

    @override
    def run_fields(self, config: RemBertConfig) -> dict[str, Any]:
        sizes = dict(embedding_size=config.embedding_size or 0, output_embedding_size=config.output_embedding_size or 0)
        return {**self.run_traits, **sizes}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        sizes = dict(embedding_size=arch.embedding_width, output_embedding_size=arch.prediction_width)
        return write_keys(arch.replace(**sizes), self.config_fields)

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        mappings = (
            *stack(*self._norms),
            *dense("encoder/embeddings/projection", "@encoder.embedding_hidden_mapping_in"),
            *dense("pooler/dense", "@pooler.dense"),
            *dense("masked_lm/dense", "cls.predictions.dense"),
            *norm("masked_lm/norm", "cls.predictions.LayerNorm"),
            *tensor("masked_lm/bias", "cls.predictions.decoder.bias"),
            *tensor("masked_lm/table", "cls.predictions.decoder.weight"),
            *dense("classifier", "qa_outputs" if head == "span" else "classifier"),
        )
        return with_paths(mappings, arch, head)


FAMILIES.register("rembert", RemBertConfig)(RemBert())
