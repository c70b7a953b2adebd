"""BERT (Devlin et al. 2018, arXiv:1810.04805): a post-norm encoder with token types, trained on masked tokens.

Multilingual BERT is the base size with a vocabulary of 119,547 (cased) or 105,879 (uncased).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES, Family
from lm_research.models.families.common import ConfigField, ParamMapping, dense, norm
from lm_research.models.families.encoder_weights import POST_NORMS, output_table, stack, with_paths

FIELDS: tuple[ConfigField, ...] = (
    ConfigField("vocab_size", "vocab_size", 30522),
    ConfigField("hidden_size", "hidden_size", 768),
    ConfigField("num_layers", "num_hidden_layers", 12),
    ConfigField("num_heads", "num_attention_heads", 12),
    ConfigField("intermediate_size", "intermediate_size", 3072),
    ConfigField("activation", "hidden_act", "gelu"),
    ConfigField("dropout_rate", "hidden_dropout_prob", 0.1),
    ConfigField("attention_dropout_rate", "attention_probs_dropout_prob", 0.1),
    ConfigField("max_length", "max_position_embeddings", 512),
    ConfigField("num_types", "type_vocab_size", 2),
    ConfigField("init_std", "initializer_range", 0.02),
    ConfigField("norm_epsilon", "layer_norm_eps", 1e-12),
    ConfigField("tied", "tie_word_embeddings", True),
    ConfigField("pad_id", "pad_token_id", 0),
)


class Bert(Family):
    """A post-norm encoder with token types (Devlin et al. 2018)."""

    # Devlin et al. 2018, section 3 (base, large); Turc et al. 2019, arXiv:1908.08962, table 1 (the others).
    sizes = {
        "tiny": dict(num_layers=2, hidden_size=128, num_heads=2, intermediate_size=512),
        "mini": dict(num_layers=4, hidden_size=256, num_heads=4, intermediate_size=1024),
        "small": dict(num_layers=4, hidden_size=512, num_heads=8, intermediate_size=2048),
        "medium": dict(num_layers=8, hidden_size=512, num_heads=8, intermediate_size=2048),
        "base": dict(num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072),
        "large": dict(num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=4096),
    }
    traits = dict(norm="post", embedding_norm=True, init="truncated_normal", head_transform=True)
    run_traits = dict(num_types=2, norm_epsilon=1e-12, activation="gelu")
    head = "pretraining"

    model_types = {"bert": "Bert"}
    classes = {
        "ForPreTraining": "pretraining",
        "ForMaskedLM": "masked_lm",
        "LMHeadModel": "causal_lm",
        "ForNextSentencePrediction": "next_sentence",
        "ForSequenceClassification": "classification",
        "ForTokenClassification": "token_classification",
        "ForQuestionAnswering": "span",
        "ForMultipleChoice": "multiple_choice",
        "Model": "none",
    }
    config_fields = (*FIELDS, ConfigField("causal", "is_decoder", False))
    required = {"position_embedding_type": "absolute"}
    decoder_config: Mapping[str, Any] | None = {"is_decoder": True}

    base_prefix = "bert."
    redundant = (r"position_ids$",)  # in older files
    unread: tuple[str, ...] = (r"\.crossattention\.",)  # in decoders without an encoder

    _norms: tuple[str, ...] = POST_NORMS  # arguments of encoder_weights.stack

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        mappings = (
            *stack(*self._norms),
            *dense("pooler/dense", "@pooler.dense"),
            *dense("masked_lm/dense", "cls.predictions.transform.dense"),
            *norm("masked_lm/norm", "cls.predictions.transform.LayerNorm"),
            *output_table("cls.predictions", "cls.predictions.decoder", arch),
            *dense("next_sentence", "cls.seq_relationship"),
            *dense("classifier", "qa_outputs" if head == "span" else "classifier"),
        )
        return with_paths(mappings, arch, head)


FAMILIES.register("bert")(Bert())
