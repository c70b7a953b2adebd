"""data2vec for text (Baevski et al. 2022, arXiv:2202.03555): RoBERTa trained to predict its own averaged states.

Its base size is RoBERTa's (section 4.3).
"""

from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import with_defaults
from lm_research.models.families.roberta import Roberta


class Data2VecText(Roberta):
    """RoBERTa trained on its own averaged states (Baevski et al. 2022)."""

    sizes = {"base": Roberta.sizes["base"]}
    model_types = {"data2vec-text": "Data2VecText"}
    config_fields = with_defaults(Roberta.config_fields, {"vocab_size": 30522})
    base_prefix = "data2vec_text."


FAMILIES.register("data2vec_text")(Data2VecText())
