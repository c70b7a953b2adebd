"""mT5 (Xue et al. 2020, arXiv:2010.11934): T5 v1.1 over 101 languages, with a vocabulary of 250,112."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import EncoderDecoderConfig, with_defaults
from lm_research.models.families.t5 import T5, fields_of

CONFIG_FIELDS = with_defaults(T5.config_fields, {"vocab_size": 250112, "d_ff": 1024, "num_heads": 6})
DEFAULTS = {"num_layers": 8, "feed_forward_proj": "gated-gelu"}  # of keys that are no fields


class MT5(T5):
    """T5 v1.1 over 101 languages (Xue et al. 2020)."""

    # Xue et al. 2020, section 3.2: the shapes of T5 v1.1.
    sizes = {
        name.removeprefix("v1.1_"): {key: value for key, value in size.items() if key != "variant"}
        for name, size in T5.sizes.items()
        if name.startswith("v1.1")
    }
    model_types = {"mt5": "MT5"}
    config_fields = CONFIG_FIELDS

    @override
    def run_fields(self, config: EncoderDecoderConfig) -> dict[str, Any]:
        return fields_of("v1.1", config)

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        """Read it as T5 does, except that outputs are never scaled, even if they are tied."""
        return super().from_hf({**DEFAULTS, **hf}, names).replace(logit_scale=1.0)


FAMILIES.register("mt5", EncoderDecoderConfig)(MT5())
