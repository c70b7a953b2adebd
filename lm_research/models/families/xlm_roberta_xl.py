"""XLM-R XL and XXL (Goyal et al. 2021, arXiv:2105.00572): XLM-R with norms before the branches."""

from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import with_defaults
from lm_research.models.families.xlm_roberta import XLMRoberta

DEFAULTS = {
    "vocab_size": 250880,
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "intermediate_size": 10240,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}


class XLMRobertaXL(XLMRoberta):
    """XLM-R with norms before the branches (Goyal et al. 2021)."""

    # Goyal et al. 2021, section 2.
    sizes = {
        "xl": dict(num_layers=36, hidden_size=2560, num_heads=32, intermediate_size=10240),
        "xxl": dict(num_layers=48, hidden_size=4096, num_heads=32, intermediate_size=16384),
    }
    traits = XLMRoberta.traits | dict(norm="pre", embedding_norm=False)

    model_types = {"xlm-roberta-xl": "XLMRobertaXL"}
    config_fields = with_defaults(XLMRoberta.config_fields, DEFAULTS)
    _norms = ("attention.self_attn_layer_norm", "LayerNorm", "@encoder.LayerNorm")


FAMILIES.register("xlm_roberta_xl")(XLMRobertaXL())
