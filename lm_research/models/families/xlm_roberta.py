"""XLM-R (Conneau et al. 2019, arXiv:1911.02116): RoBERTa over 100 languages, with 250,002 sentencepiece tokens.

Its sizes are RoBERTa's (section 5).
"""

from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import with_defaults
from lm_research.models.families.roberta import Roberta


class XLMRoberta(Roberta):
    """RoBERTa over 100 languages (Conneau et al. 2019)."""

    model_types = {"xlm-roberta": "XLMRoberta"}
    config_fields = with_defaults(Roberta.config_fields, {"vocab_size": 30522})


FAMILIES.register("xlm_roberta")(XLMRoberta())
