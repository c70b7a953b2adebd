"""Blenderbot's small model (Roller et al. 2020, arXiv:2004.13637): a post-norm encoder-decoder of dialogues."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.bart import Bart
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.blenderbot import Blenderbot
from lm_research.models.families.common import EncoderDecoderConfig, with_defaults


class BlenderbotSmall(Blenderbot):
    """A post-norm encoder-decoder for dialogues (Roller et al. 2020).

    Its decoder does not scale embeddings, and normalizes them before positions are added.
    """

    # The released model; vocabulary of 54,944.
    sizes = {"90m": dict(num_layers=8, hidden_size=512, num_heads=16, intermediate_size=2048, max_length=512)}
    traits = dict(norm="post", embedding_norm=True, norm_before_positions=True, head_bias=True)

    model_types = {"blenderbot-small": "BlenderbotSmall"}
    config_fields = with_defaults(
        Bart.config_fields, {"d_model": 512, "max_position_embeddings": 512, "pad_token_id": 0}
    )
    _stack_defaults = {"layers": 8, "ffn_dim": 2048, "attention_heads": 16}

    @override
    def architecture(self, config: EncoderDecoderConfig, vocab_size: int) -> Architecture:
        return super().architecture(config, vocab_size).replace(embedding_scale=1.0)

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        return super().from_hf(hf, names).replace(embedding_scale=1.0)


FAMILIES.register("blenderbot_small", EncoderDecoderConfig)(BlenderbotSmall())
