"""XLM-R (Conneau et al. 2019, arXiv:1911.02116): RoBERTa over 100 languages, with 250,002 sentencepiece tokens."""

from lm_research.models.families import roberta
from lm_research.models.families.roberta import (  # noqa: F401  (the family is RoBERTa but for names and sizes)
    AS_DECODER,
    CLASSES,
    COPIES,
    KEPT,
    KEYS,
    architecture,
    from_hf,
    prefix,
    to_hf,
    weights,
)

SIZES = roberta.SIZES  # Conneau et al. 2019, section 5: the shapes of RoBERTa
MODEL_TYPES = {"xlm-roberta": "XLMRoberta"}
