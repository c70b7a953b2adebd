"""MPNet (Song et al. 2020, arXiv:2004.09297): RoBERTa with a bias by distance besides its learned positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import (
    ParamMapping,
    attention,
    norm,
    tensor,
    with_defaults,
    without,
)
from lm_research.models.families.encoder_weights import replaced
from lm_research.models.families.roberta import Roberta


class MPNet(Roberta):
    """RoBERTa with a bias by distance besides its learned positions (Song et al. 2020)."""

    # Song et al. 2020, section 3.1: the shape of BERT-base; vocabulary of 30,527.
    sizes = {"base": Roberta.sizes["base"]}
    traits = Roberta.traits | dict(
        score_positions="relative", relative_buckets=32, relative_max_distance=128, num_types=0
    )
    run_traits = without(Roberta.run_traits, "num_types")

    model_types = {"mpnet": "MPNet"}
    classes = without(Roberta.classes, "ForCausalLM")
    config_fields = with_defaults(
        (field for field in Roberta.config_fields if field.field not in ("num_types", "causal")), {"vocab_size": 30527}
    )
    required = {"relative_attention_num_buckets": 32}
    decoder_config = None
    base_prefix = "mpnet."

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        return super().read(
            {**hf, "pad_token_id": 1}
        )  # positions start at 2 and skip token 1, whatever pad_token_id is

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        ours, theirs = "encoder/layers", "@encoder.layer.{}"
        own = (
            *tensor("encoder/relative_bias", "@encoder.relative_attention_bias.weight"),
            *attention(f"{ours}/attention", f"{theirs}.attention.attn", "q", "k", "v", "o"),
            *norm(f"{ours}/attention_norm", f"{theirs}.attention.LayerNorm"),
        )
        return replaced(super().weights(arch, head), own)


FAMILIES.register("mpnet")(MPNet())
