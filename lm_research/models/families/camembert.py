"""CamemBERT (Martin et al. 2019, arXiv:1911.03894): RoBERTa for French, with 32,005 sentencepiece tokens."""

from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import with_defaults
from lm_research.models.families.roberta import Roberta


class Camembert(Roberta):
    """RoBERTa for French (Martin et al. 2019)."""

    model_types = {"camembert": "Camembert"}
    config_fields = with_defaults(Roberta.config_fields, {"vocab_size": 30522})


FAMILIES.register("camembert")(Camembert())
