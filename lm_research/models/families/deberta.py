"""DeBERTa (He et al. 2020, arXiv:2006.03654): attention to contents and to distances, each of which has an embedding."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from typing_extensions import override

from lm_research.config import ModelConfig
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES, Family
from lm_research.models.families.bert import Bert
from lm_research.models.families.common import ParamMapping, dense, tensor, with_defaults, without
from lm_research.models.families.deberta_v2 import DebertaV2
from lm_research.models.families.encoder_weights import replaced

DEFAULTS = {
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
# Keys of DeBERTa-v2 that have no effect here.
ABSENT = "share_att_key position_buckets norm_rel_ebd conv_kernel_size conv_groups conv_act attention_head_size".split()


class Deberta(DebertaV2):
    """An encoder with attention to contents and to distances, each of which has an embedding (He et al. 2020)."""

    # He et al. 2020, table 8 and the released models; vocabulary of 50,265.
    sizes = {
        "base": Bert.sizes["base"],
        "large": Bert.sizes["large"],
        "xlarge": dict(num_layers=48, hidden_size=1024, num_heads=16, intermediate_size=4096),
    }
    traits = DebertaV2.traits | dict(key_bias=False)
    run_traits = DebertaV2.run_traits | dict(position_projections=True, relative_norm=False, relative_max_distance=0)

    model_types = {"deberta": "Deberta"}
    classes = without(DebertaV2.classes, "ForMultipleChoice")
    config_fields = with_defaults(DebertaV2.config_fields, DEFAULTS)
    other_keys = without(DebertaV2.other_keys, *ABSENT)
    unread = (r"encoder\.rel_embeddings\.", r"\.pos_(q_)?proj\.")

    @override
    def architecture(self, config: ModelConfig, vocab_size: int) -> Architecture:
        return Family.architecture(self, config, vocab_size)

    @override
    def run_fields(self, config: ModelConfig) -> Mapping[str, Any]:
        return {**self.run_traits, "relative_buckets": 2 * config.max_length}

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        return super().from_hf(without(hf, *ABSENT), names)

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        return without(super().to_hf(arch), *ABSENT)

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        ours, theirs = "encoder/layers/attention", "@encoder.layer.{}.attention.self"
        fused: dict[str, Any] = dict(parts=(1, 1, 1), groups=arch.num_heads)
        projections = [
            dense(f"{ours}/{name}", f"{theirs}.in_proj", part=part, **fused)[0]
            for part, name in enumerate(("query", "key", "value"))
        ]
        own = (
            *projections,
            *tensor(f"{ours}/query/bias", f"{theirs}.q_bias"),
            *tensor(f"{ours}/value/bias", f"{theirs}.v_bias"),
            *dense(f"{ours}/position_key", f"{theirs}.pos_proj"),
            *dense(f"{ours}/position_query", f"{theirs}.pos_q_proj"),
        )
        return replaced(super().weights(arch, head), own)


FAMILIES.register("deberta")(Deberta())
