"""RoBERTa with norms before the branches, as fairseq's `--encoder-normalize-before` and Wettig et al. 2022 (arXiv:2202.08005)."""

from lm_research.models.families.base import FAMILIES
from lm_research.models.families.roberta import Roberta


class RobertaPreLayerNorm(Roberta):
    """RoBERTa with norms before the branches (Wettig et al. 2022)."""

    traits = Roberta.traits | dict(norm="pre")

    model_types = {"roberta-prelayernorm": "RobertaPreLayerNorm"}
    base_prefix = "roberta_prelayernorm."
    _norms = ("attention.LayerNorm", "intermediate.LayerNorm", "@LayerNorm")


FAMILIES.register("roberta_prelayernorm")(RobertaPreLayerNorm())
