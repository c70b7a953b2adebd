"""mBART (Liu et al. 2020, arXiv:2001.08210): pre-norm BART over 25 languages."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.bart import Bart
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import EncoderDecoderConfig


class MBart(Bart):
    """Pre-norm BART over many languages (Liu et al. 2020)."""

    # Liu et al. 2020, section 2.2: vocabulary of 250,027 with the language codes.
    sizes = {"large": Bart.sizes["large"]}
    traits = Bart.traits | dict(norm="pre")
    model_types = {"mbart": "MBart"}
    starts_with_last_token = True

    _scales_new = True

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        hf = super().to_hf(arch)
        hf.pop("decoder_start_token_id", None)  # it is the last source token
        return hf


FAMILIES.register("mbart", EncoderDecoderConfig)(MBart())
