"""BERT (Devlin et al. 2018, arXiv:1810.04805): a post-norm encoder with token types, trained on masked tokens.

Multilingual BERT is the base size with a vocabulary of 119,547 (cased) or 105,879 (uncased).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Set
from typing import Any

from lm_research.config import ModelConfig
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.families.common import (
    Key,
    Weight,
    attention,
    from_config,
    matrix,
    read_keys,
    refuse,
    scales,
    table,
    write_keys,
)

# Devlin et al. 2018, section 3 (base, large); Turc et al. 2019, arXiv:1908.08962, table 1 (the others).
SIZES = {
    "tiny": dict(num_layers=2, hidden_size=128, num_heads=2, intermediate_size=512),
    "mini": dict(num_layers=4, hidden_size=256, num_heads=4, intermediate_size=1024),
    "small": dict(num_layers=4, hidden_size=512, num_heads=8, intermediate_size=2048),
    "medium": dict(num_layers=8, hidden_size=512, num_heads=8, intermediate_size=2048),
    "base": dict(num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072),
    "large": dict(num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=4096),
}
TRAITS = dict(norm="post", embedding_norm=True, init="truncated_normal", head_transform=True)

HEAD = "pretraining"  # what it is pre-trained with
MODEL_TYPES = {"bert": "Bert"}
CLASSES = {
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
KEYS = (
    Key("vocab_size", "vocab_size", 30522),
    Key("hidden_size", "hidden_size", 768),
    Key("num_layers", "num_hidden_layers", 12),
    Key("num_heads", "num_attention_heads", 12),
    Key("intermediate_size", "intermediate_size", 3072),
    Key("activation", "hidden_act", "gelu"),
    Key("dropout_rate", "hidden_dropout_prob", 0.1),
    Key("attention_dropout_rate", "attention_probs_dropout_prob", 0.1),
    Key("max_length", "max_position_embeddings", 512),
    Key("num_types", "type_vocab_size", 2),
    Key("init_std", "initializer_range", 0.02),
    Key("norm_epsilon", "layer_norm_eps", 1e-12),
    Key("tied", "tie_word_embeddings", True),
    Key("pad_id", "pad_token_id", 0),
)
DECODER_KEYS = (*KEYS, Key("causal", "is_decoder", False))
AS_DECODER = {"is_decoder": True}  # keys of config.json that make a decoder of it
UNSUPPORTED = {"position_embedding_type": "absolute"}
# Tensors of older files that say nothing new.
COPIES = (r"position_ids$",)
KEPT = (r"\.crossattention\.",)  # of a decoder alone: only one with an encoder reads them


def architecture(config: ModelConfig, vocab_size: int) -> Architecture:
    return from_config(config, vocab_size, num_types=2, norm_epsilon=1e-12, activation="gelu", **TRAITS)


def from_hf(hf: Mapping[str, Any], names: Set[str]) -> Architecture:
    refuse(hf, UNSUPPORTED)
    return from_flat(**read_keys(hf, DECODER_KEYS), **TRAITS)


def to_hf(arch: Architecture) -> dict[str, Any]:
    return write_keys(arch, DECODER_KEYS)


def prefix(arch: Architecture, head: str) -> str:
    return "" if head == "none" else "bert."


def weights(arch: Architecture, head: str) -> tuple[Weight, ...]:
    classifier = "qa_outputs" if head == "span" else "classifier"
    found = (
        *stack("@encoder.layer.{}", "@embeddings"),
        *matrix("pooler/dense", "@pooler.dense"),
        *matrix("masked_lm/dense", "cls.predictions.transform.dense"),
        *scales("masked_lm/norm", "cls.predictions.transform.LayerNorm"),
        *output_table("cls.predictions", "cls.predictions.decoder", arch),
        *matrix("next_sentence", "cls.seq_relationship"),
        *matrix("classifier", classifier),
    )
    return placed(found, arch, head)


def placed(found: Iterable[Weight], arch: Architecture, head: str) -> tuple[Weight, ...]:
    """Weights of an encoder and of its masked-token head by the paths they have where it is a decoder, or predicts the next token."""
    moves = {"encoder": "decoder"} if arch.causal else {}
    moves |= {"masked_lm": "next_token"} if head in ("causal_lm", "seq2seq_lm") else {}

    def move(weight: Weight) -> Weight:
        part, _, rest = weight.path.partition("/")
        return dataclasses.replace(weight, path=f"{moves.get(part, part)}/{rest}") if part in moves else weight

    return tuple(map(move, found))


def stack(layer: str, embeddings: str) -> tuple[Weight, ...]:
    """Embeddings and blocks of BERT and of all that kept its names."""
    ours, projections = "encoder/layers", ("self.query", "self.key", "self.value", "output.dense")
    return (
        *table("encoder/embeddings/tokens", f"{embeddings}.word_embeddings.weight"),
        *table("encoder/embeddings/positions", f"{embeddings}.position_embeddings.weight"),
        *table("encoder/embeddings/types", f"{embeddings}.token_type_embeddings.weight"),
        *scales("encoder/embeddings/norm", f"{embeddings}.LayerNorm"),
        *attention(f"{ours}/attention", f"{layer}.attention", *projections),
        *scales(f"{ours}/attention_norm", f"{layer}.attention.output.LayerNorm"),
        *attention(f"{ours}/cross_attention", f"{layer}.crossattention", *projections),
        *scales(f"{ours}/cross_attention_norm", f"{layer}.crossattention.output.LayerNorm"),
        *matrix(f"{ours}/feed_forward/up", f"{layer}.intermediate.dense"),
        *matrix(f"{ours}/feed_forward/down", f"{layer}.output.dense"),
        *scales(f"{ours}/feed_forward_norm", f"{layer}.output.LayerNorm"),
    )


def output_table(bias: str, decoder: str, arch: Architecture) -> tuple[Weight, ...]:
    """Bias and table of the masked-token head. The decoder's bias is the one used; untied, both are stored."""
    one, used = f"{bias}.bias", f"{decoder}.bias"
    if arch.tied:
        biases = table("masked_lm/bias", one, preferred=(used,))
    else:
        biases = table("masked_lm/bias", used, one, copies=(one,), kept=(one,))
    return (*biases, *table("masked_lm/table", f"{decoder}.weight"))
