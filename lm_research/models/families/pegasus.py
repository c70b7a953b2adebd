"""PEGASUS (Zhang et al. 2019, arXiv:1912.08777): a pre-norm encoder-decoder with sinusoidal positions, for summarization."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.bart import Bart
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import EncoderDecoderConfig, with_defaults, without
from lm_research.models.families.transformer import SINUSOIDS


class Pegasus(Bart):
    """A pre-norm encoder-decoder with sinusoidal positions, for summarization (Zhang et al. 2019)."""

    # Zhang et al. 2019, section 6.1; vocabulary of 96,103 pieces.
    sizes = {
        "base": dict(num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072, max_length=512),
        "large": dict(num_layers=16, hidden_size=1024, num_heads=16, intermediate_size=4096, max_length=1024),
    }
    traits = dict(norm="pre", positions="sinusoidal", head_bias=True)
    run_traits = dict(activation="relu", norm_epsilon=1e-5, pad_id=0, eos_id=1)

    model_types = {"pegasus": "Pegasus"}
    classes = without(Bart.classes, "ForSequenceClassification", "ForQuestionAnswering")
    config_fields = with_defaults(Bart.config_fields, {"pad_token_id": 0, "eos_token_id": 1})
    sinusoids = SINUSOIDS

    _scales_new = True

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        hf = super().to_hf(arch)
        return hf if arch.encoder is None else hf | {"decoder_start_token_id": max(arch.pad_id, 0)}


FAMILIES.register("pegasus", EncoderDecoderConfig)(Pegasus())
