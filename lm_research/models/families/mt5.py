"""mT5 (Xue et al. 2020, arXiv:2010.11934): T5 v1.1 over 101 languages, with 250,112 rows of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from lm_research.models.architecture import Architecture
from lm_research.models.families import t5
from lm_research.models.families.t5 import (  # noqa: F401  (the family is T5 v1.1 but for names and sizes)
    CLASSES,
    COPIES,
    ENCODER_ONLY,
    KEYS,
    TIE_FLAGS,
    architecture,
    prefix,
    to_hf,
    weights,
)

# Xue et al. 2020, section 3.2: the shapes of T5 v1.1.
SIZES = {name.removeprefix("v1.1_"): size for name, size in t5.SIZES.items() if name.startswith("v1.1")}
MODEL_TYPES = {"mt5": "MT5"}


def from_hf(hf: Mapping[str, Any], names: Set[str]) -> Architecture:
    """Like T5's, but its outputs are never scaled, whatever the file says about tying."""
    return t5.from_hf(hf, names).replace(logit_scale=1.0)
