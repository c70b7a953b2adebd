"""MVP (Tang et al. 2022, arXiv:2206.12131): BART trained on many labeled tasks of generation."""

from __future__ import annotations

from lm_research.models.families.bart import Bart
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import EncoderDecoderConfig, with_defaults


class Mvp(Bart):
    """BART trained on many labeled tasks of generation, without its prompts (Tang et al. 2022)."""

    # Tang et al. 2022, section 3.3: the shape of BART; vocabulary of 50,267.
    sizes = {"large": Bart.sizes["large"]}
    model_types = {"mvp": "Mvp"}
    config_fields = with_defaults(Bart.config_fields, {"vocab_size": 50267})
    required = {"use_prompt": False}


FAMILIES.register("mvp", EncoderDecoderConfig)(Mvp())
