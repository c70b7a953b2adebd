"""PLBART (Ahmad et al. 2021, arXiv:2103.06333): BART for programs and their descriptions."""

from __future__ import annotations

from lm_research.models.families.bart import Bart
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import EncoderDecoderConfig, with_defaults, without
from lm_research.models.families.mbart import MBart


class PLBart(MBart):
    """BART for programs, whose targets start with their language (Ahmad et al. 2021)."""

    # Ahmad et al. 2021, section 2.1, and the released models; vocabulary of 50,005.
    sizes = Bart.sizes
    traits = Bart.traits

    model_types = {"plbart": "PLBart"}
    classes = without(Bart.classes, "ForQuestionAnswering")
    config_fields = with_defaults(Bart.config_fields, {"vocab_size": 50005, "d_model": 768, "attention_dropout": 0.1})
    _scales_read = True
    _stack_defaults = {"layers": 6, "ffn_dim": 3072, "attention_heads": 12}


FAMILIES.register("plbart", EncoderDecoderConfig)(PLBart())
