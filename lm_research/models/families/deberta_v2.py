"""DeBERTa-v2 and -v3 (He et al. 2020, arXiv:2006.03654; 2021, arXiv:2111.09543): attention to contents and to distances.

v3 is the same architecture, pre-trained by replaced-token detection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

from typing_extensions import override

from lm_research.config import ModelConfig, key
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.families import deberta_keys
from lm_research.models.families.base import FAMILIES, Family
from lm_research.models.families.bert import FIELDS, Bert
from lm_research.models.families.common import (
    ConfigField,
    ParamMapping,
    check_supported,
    given,
    with_defaults,
    write_keys,
)
from lm_research.models.families.deberta_weights import heads, stack

DEFAULTS = {
    "vocab_size": 128100,
    "hidden_size": 1536,
    "num_hidden_layers": 24,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
}


@dataclasses.dataclass(frozen=True)
class DebertaConfig(ModelConfig):
    """Model section of DeBERTa-v2."""

    conv_width: int | None = key(
        None, "Width of a convolution next to the first layer, which is odd; None for none.", low=1, high=1023
    )


class DebertaV2(Family):
    """An encoder with attention to contents and to distances (He et al. 2020)."""

    # He et al. 2021, section 4, and the released models; xlarge and xxlarge are v2. Vocabulary of 128,100.
    sizes = {
        "xsmall": dict(num_layers=12, hidden_size=384, num_heads=6, intermediate_size=1536),
        "small": dict(num_layers=6, hidden_size=768, num_heads=12, intermediate_size=3072),
        "base": Bert.sizes["base"],
        "large": Bert.sizes["large"],
        "xlarge": dict(num_layers=24, hidden_size=1536, num_heads=24, intermediate_size=6144, conv_width=3),
        "xxlarge": dict(num_layers=48, hidden_size=1536, num_heads=24, intermediate_size=6144, conv_width=3),
    }
    traits = dict(norm="post", embedding_norm=True, isolated_padding=True)
    run_traits = dict(
        positions="disentangled",
        position_terms=("query", "key"),
        position_projections=False,
        relative_norm=True,
        norm_epsilon=1e-7,
        activation="gelu",
        pooler_activation="gelu",
        pad_id=0,
    )

    model_types = {"deberta-v2": "DebertaV2"}
    classes = {
        "ForMaskedLM": "masked_lm",
        "ForSequenceClassification": "classification",
        "ForTokenClassification": "token_classification",
        "ForQuestionAnswering": "span",
        "ForMultipleChoice": "multiple_choice",
        "Model": "none",
    }
    config_fields = (*with_defaults(FIELDS, DEFAULTS), ConfigField("pooler_activation", "pooler_hidden_act", "gelu"))
    other_keys = deberta_keys.KEYS
    required = {"talking_head": False}

    base_prefix = "deberta."
    redundant = (r"position_ids$", r"position_embeddings\.", r"^mask_predictions\.")
    unread: tuple[str, ...] = (r"encoder\.(LayerNorm|rel_embeddings)\.",)  # without relative_attention or pos_att_type

    def __init__(self, legacy: bool = False) -> None:
        self._legacy = legacy  # whether weights of the masked-token head have BERT's names

    @override
    def of(self, hf: Mapping[str, Any]) -> Family:
        return type(self)(legacy=given(hf, "legacy", True))

    @override
    def architecture(self, config: DebertaConfig, vocab_size: int) -> Architecture:
        arch = super().architecture(config, vocab_size)
        if not config.conv_width:
            return arch
        first = dataclasses.replace(arch.layers[0], conv_width=config.conv_width, conv_activation="gelu")
        return arch.replace(layers=(first, *arch.layers * (config.num_layers - 1)))

    @override
    def run_fields(self, config: DebertaConfig) -> Mapping[str, Any]:
        # 256 rows on each side up to distance 512 in the released models.
        rows = max(4, 2 * min(256, config.max_length // 2))
        return {**self.run_traits, "relative_buckets": rows, "relative_max_distance": config.max_length}

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        fields = self.read(hf)
        return from_flat(deberta_keys.read_convolution(hf, fields["num_layers"]), **self.traits | fields)

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().read(hf)
        width, heads = fields["hidden_size"], fields["num_heads"]
        check_supported(
            hf, {"embedding_size": width, "pooler_hidden_size": width, "attention_head_size": width // heads}
        )
        fields["positions"] = "learned" if given(hf, "position_biased_input", True) else "none"
        if not given(hf, "legacy", True):
            fields["tied"] = True
        return fields | deberta_keys.read_distances(hf, fields)

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        hf = write_keys(arch, self.config_fields) | {"legacy": not arch.tied}  # the other head is always tied
        return hf | deberta_keys.write_distances(arch) | deberta_keys.write_convolution(arch)

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        return (*stack(), *heads(arch, head, self._legacy or not arch.tied))


FAMILIES.register("deberta_v2", DebertaConfig)(DebertaV2())
