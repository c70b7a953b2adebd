"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT without next-sentence prediction; positions count real tokens."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from lm_research.config import ModelConfig
from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.families import bert
from lm_research.models.families.common import (
    FIX,
    Weight,
    from_config,
    matrix,
    read_keys,
    refuse,
    scales,
    with_defaults,
    without,
    write_keys,
)

# Liu et al. 2019, section 3.1 and 5: the shapes of BERT; vocabulary of 50,265 byte-level pieces.
SIZES = {name: bert.SIZES[name] for name in ("base", "large")}
TRAITS = {**bert.TRAITS, "head_activation": "gelu", "count_padding": False, "prompt_positions": "rows"}

MODEL_TYPES = {"roberta": "Roberta"}
CLASSES = {
    **without(bert.CLASSES, "ForPreTraining", "ForNextSentencePrediction", "LMHeadModel"),
    "ForCausalLM": "causal_lm",
}
KEYS = with_defaults(bert.DECODER_KEYS, {"vocab_size": 50265, "pad_token_id": 1})
AS_DECODER, UNSUPPORTED, KEPT = bert.AS_DECODER, bert.UNSUPPORTED, bert.KEPT
COPIES = (r"position_ids$",)


def architecture(config: ModelConfig, vocab_size: int) -> Architecture:
    # Two rows come before position 0, as in the released models, whose padding token is number 1.
    traits = TRAITS | dict(
        count_padding=True, prompt_positions="tokens", num_types=1, norm_epsilon=1e-5, position_offset=2, pad_id=1
    )
    return from_config(config, vocab_size, **traits)


def from_hf(hf: Mapping[str, Any], names: Set[str]) -> Architecture:
    refuse(hf, UNSUPPORTED)
    fields = read_keys(hf, KEYS)
    offset = fields["pad_id"] + 1
    if not 0 < offset < fields["max_length"]:
        raise PretrainedError(
            f"config.json: pad_token_id is {fields['pad_id']}, but positions begin behind its number and max_position_embeddings is "
            f"{fields['max_length']}. {FIX}"
        )
    return from_flat(**fields | {"max_length": fields["max_length"] - offset}, position_offset=offset, **TRAITS)


def to_hf(arch: Architecture) -> dict[str, Any]:
    offset = arch.position_offset
    return write_keys(arch.replace(max_length=arch.max_length + offset, pad_id=offset - 1), KEYS)


def prefix(arch: Architecture, head: str) -> str:
    return "" if head == "none" else "roberta."


def weights(arch: Architecture, head: str) -> tuple[Weight, ...]:
    inner, outer = ("classifier.dense", "classifier.out_proj") if head == "classification" else ("@pooler.dense", "")
    found = (
        *bert.stack("@encoder.layer.{}", "@embeddings"),
        *matrix("pooler/dense", inner),
        *matrix("masked_lm/dense", "lm_head.dense"),
        *scales("masked_lm/norm", "lm_head.layer_norm"),
        *bert.output_table("lm_head", "lm_head.decoder", arch),
        *matrix("classifier", outer or ("qa_outputs" if head == "span" else "classifier")),
    )
    return bert.placed(found, arch, head)
