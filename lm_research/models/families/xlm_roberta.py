"""XLM-R (Conneau et al. 2019, arXiv:1911.02116): RoBERTa over 100 languages, with 250,002 sentencepiece tokens.

Its sizes are RoBERTa's (section 5).
"""

from lm_research.models.families.base import FAMILIES
from lm_research.models.families.roberta import Roberta


class XLMRoberta(Roberta):
    """RoBERTa over 100 languages (Conneau et al. 2019)."""

    model_types = {"xlm-roberta": "XLMRoberta"}


FAMILIES.register("xlm_roberta")(XLMRoberta())
