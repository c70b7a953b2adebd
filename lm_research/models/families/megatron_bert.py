"""Megatron's BERT (Shoeybi et al. 2019, arXiv:1909.08053): BERT with norms before the branches."""

from lm_research.models.families.base import FAMILIES
from lm_research.models.families.bert import Bert
from lm_research.models.families.common import with_defaults, without

DEFAULTS = {
    "vocab_size": 29056,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}


class MegatronBert(Bert):
    """BERT with norms before the branches (Shoeybi et al. 2019)."""

    # Shoeybi et al. 2019, table 4.
    sizes = {
        "345m": dict(num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=4096),
        "1.3b": dict(num_layers=24, hidden_size=2048, num_heads=32, intermediate_size=8192),
        "3.9b": dict(num_layers=48, hidden_size=2560, num_heads=40, intermediate_size=10240),
    }
    traits = Bert.traits | dict(norm="pre", embedding_norm=False)

    model_types = {"megatron-bert": "MegatronBert"}
    classes = without(Bert.classes, "LMHeadModel") | {"ForCausalLM": "causal_lm"}
    config_fields = with_defaults(Bert.config_fields, DEFAULTS)
    _norms = ("attention.ln", "ln", "@encoder.ln")


FAMILIES.register("megatron_bert")(MegatronBert())
