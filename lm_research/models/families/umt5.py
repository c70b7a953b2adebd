"""UMT5 (Chung et al. 2023, arXiv:2304.09151): mT5 over 107 languages, with relative positions of its own in each layer."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import EncoderDecoderConfig
from lm_research.models.families.mt5 import CONFIG_FIELDS, DEFAULTS, MT5
from lm_research.models.families.t5 import T5, fields_of


class UMT5(T5):
    """T5 v1.1 over 107 languages, each of whose layers has its own table of relative positions (Chung et al. 2023)."""

    # The released models; vocabulary of 256,384.
    sizes = {name: size for name, size in MT5.sizes.items() if name != "large"}
    traits = T5.traits | dict(own_relative_table=True)
    model_types = {"umt5": "UMT5"}
    config_fields = CONFIG_FIELDS

    @override
    def run_fields(self, config: EncoderDecoderConfig) -> dict[str, Any]:
        return fields_of("v1.1", config)

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        return super().from_hf({**DEFAULTS, **hf}, names)


FAMILIES.register("umt5", EncoderDecoderConfig)(UMT5())
