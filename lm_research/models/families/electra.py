"""ELECTRA (Clark et al. 2020, arXiv:2003.10555): BERT as a generator of replacements and as their discriminator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

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

DEFAULTS = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}


class Electra(Bert):
    """BERT as a generator of replacements or as their discriminator (Clark et al. 2020)."""

    # Clark et al. 2020, table 6. The generator has 1/4 (base: 1/3) of the discriminator's width, and its embeddings.
    sizes = {
        "small": dict(num_layers=12, hidden_size=256, num_heads=4, intermediate_size=1024, embedding_size=128),
        "base": dict(num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072, embedding_size=768),
        "large": dict(num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=4096, embedding_size=1024),
        "small_generator": dict(
            num_layers=12, hidden_size=256, num_heads=4, intermediate_size=1024, embedding_size=128
        ),
        "base_generator": dict(num_layers=12, hidden_size=256, num_heads=4, intermediate_size=1024, embedding_size=768),
        "large_generator": dict(
            num_layers=24, hidden_size=256, num_heads=4, intermediate_size=1024, embedding_size=1024
        ),
    }
    traits = Bert.traits | dict(head_activation="gelu", pooler_activation="gelu")
    run_traits = dict(num_types=2, norm_epsilon=1e-12)
    head = ""

    model_types = {"electra": "Electra"}
    classes = {
        "ForPreTraining": "replaced_token",
        **without(Bert.classes, "ForPreTraining", "ForNextSentencePrediction", "LMHeadModel"),
        "ForCausalLM": "causal_lm",
    }
    config_fields = (ConfigField("embedding_size", "embedding_size", 128), *with_defaults(Bert.config_fields, DEFAULTS))
    required = Bert.required | {"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"}
    base_prefix = "electra."

    @override
    def run_fields(self, config: FactorizedConfig) -> dict[str, Any]:
        size = config.embedding_size or config.hidden_size
        widths_differ = size != config.hidden_size
        return self.run_traits | {"embedding_size": config.embedding_size or 0, "embedding_projection": widths_differ}

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().read(hf)
        return fields | {"embedding_projection": fields["embedding_size"] != fields["hidden_size"]}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        return write_keys(arch.replace(embedding_size=arch.embedding_width), self.config_fields)

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        inner = {"classification": "classifier.dense"}.get(head, "sequence_summary.summary")
        outer = {"classification": "classifier.out_proj", "span": "qa_outputs"}.get(head, "classifier")
        mappings = (
            *stack(*self._norms),
            *dense("encoder/embeddings/projection", "@embeddings_project"),
            *dense("masked_lm/dense", "generator_predictions.dense"),
            *norm("masked_lm/norm", "generator_predictions.LayerNorm"),
            *tensor("masked_lm/bias", "generator_lm_head.bias"),
            *tensor("masked_lm/table", "generator_lm_head.weight"),
            *dense("replaced_token/dense", "discriminator_predictions.dense"),
            *dense("replaced_token/output", "discriminator_predictions.dense_prediction"),
            *dense("pooler/dense", inner),
            *dense("classifier", outer),
        )
        return with_paths(mappings, arch, head)


FAMILIES.register("electra", FactorizedConfig)(Electra())
