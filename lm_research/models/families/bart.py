"""BART (Lewis et al. 2019, arXiv:1910.13461): a post-norm encoder-decoder with learned positions, trained to denoise."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from lm_research.common.documents import Size
from lm_research.config import ModelConfig
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.families.common import (
    Key,
    Weight,
    attention,
    check_others,
    encoder_decoder,
    given,
    matrix,
    read_keys,
    scales,
    table,
    write_keys,
)

# Lewis et al. 2019, section 2.1 and the released checkpoints: layers of each stack; 1,024 positions, vocabulary 50,265.
SIZES = {
    "base": dict(num_layers=6, hidden_size=768, num_heads=12, intermediate_size=3072, max_length=1024),
    "large": dict(num_layers=12, hidden_size=1024, num_heads=16, intermediate_size=4096, max_length=1024),
}
OFFSET = 2  # rows of the position tables before position 0
TRAITS = dict(norm="post", embedding_norm=True, position_offset=OFFSET, pooling="eos", head_bias=True)

MODEL_TYPES = {"bart": "Bart"}
CLASSES = {
    "ForConditionalGeneration": "seq2seq_lm",
    "ForCausalLM": "causal_lm",
    "ForSequenceClassification": "classification",
    "ForQuestionAnswering": "span",
    "Model": "none",
}
KEYS = (
    Key("vocab_size", "vocab_size", 50265),
    Key("hidden_size", "d_model", 1024),
    Key("max_length", "max_position_embeddings", 1024),
    Key("activation", "activation_function", "gelu"),
    Key("dropout_rate", "dropout", 0.1),
    Key("attention_dropout_rate", "attention_dropout", 0.0),
    Key("activation_dropout_rate", "activation_dropout", 0.0),
    Key("init_std", "init_std", 0.02),
    Key("pad_id", "pad_token_id", 1),
    Key("eos_id", "eos_token_id", 2),
)
OTHERS = {
    "scale_embedding": bool, "tie_word_embeddings": bool, "share_encoder_decoder_embeddings": bool, "decoder_vocab_size": Size,
    "is_decoder": bool, "is_encoder_decoder": bool,
}  # fmt: skip
AS_DECODER = {"is_decoder": True, "is_encoder_decoder": False}  # keys of config.json that make a decoder alone of it
LOSSES = {"causal_lm": "seq2seq_lm"}  # labels of the decoder alone are not moved: each stands where it is predicted
STACK_KEYS = ("num_layers", "layers", 12), ("intermediate_size", "ffn_dim", 4096), ("num_heads", "attention_heads", 16)
KEPT = (r"\.encoder_attn(_layer_norm)?\.",)  # of a decoder alone: only one with an encoder reads them
COPIES = (r"^(model\.)?version$",)


def architecture(config: ModelConfig, vocab_size: int) -> Architecture:
    return encoder_decoder(config, vocab_size, activation="gelu", norm_epsilon=1e-5, pad_id=1, eos_id=2, **TRAITS)


def read(hf: Mapping[str, Any], traits: Mapping[str, Any]) -> Architecture:
    """The two stacks of a config.json of BART's kind."""
    check_others(hf, OTHERS)
    fields = {**traits, **read_keys(hf, KEYS)}
    if hf.get("scale_embedding"):
        fields["embedding_scale"] = fields["hidden_size"] ** 0.5

    def stack(name: str) -> dict[str, int]:
        return read_keys(hf, [Key(field, f"{name}_{key}", default) for field, key, default in STACK_KEYS])

    inner = {name: value for name, value in fields.items() if name not in ("eos_id", "head_bias")}
    fields["tied"] = given(hf, "tie_word_embeddings", True)
    fields["shared_tokens"] = fields["tied"] and given(hf, "share_encoder_decoder_embeddings", True)
    fields["vocab_size"] = hf.get("decoder_vocab_size") or fields["vocab_size"]
    if alone(hf):
        fields |= {"shared_tokens": True, "head_bias": False, "prompt_positions": "slots"}
        return from_flat(causal=True, **fields, **stack("decoder"))
    encoder = from_flat(**inner, **stack("encoder"))
    return from_flat(causal=True, encoder=encoder, **fields, **stack("decoder"))


def alone(hf: Mapping[str, Any]) -> bool:
    """Whether config.json is one of the decoder without the encoder."""
    classes = [str(name) for name in hf.get("architectures") or ()]
    said = bool(hf.get("is_decoder")) and not given(hf, "is_encoder_decoder", True)
    return said or any(name.endswith("ForCausalLM") for name in classes)


def from_hf(hf: Mapping[str, Any], names: Set[str]) -> Architecture:
    return read(hf, TRAITS)


def to_hf(arch: Architecture) -> dict[str, Any]:
    stacks = {"encoder": arch.encoder, "decoder": arch} if arch.encoder is not None else {"decoder": arch}
    hf = write_keys(arch, KEYS) | {
        "vocab_size": (arch.encoder or arch).vocab_size,
        "scale_embedding": arch.embedding_scale != 1.0,
        "tie_word_embeddings": arch.tied and (arch.encoder is None or arch.shared_tokens),
    }
    for name, stack in stacks.items():
        hf |= {f"{name}_{key}": getattr(stack, field) for field, key, _ in STACK_KEYS}
    if arch.encoder is None:
        return hf | AS_DECODER
    return hf | {"is_encoder_decoder": True, "decoder_start_token_id": arch.eos_id}


def prefix(arch: Architecture, head: str) -> str:
    return "" if head == "none" else "model."


def weights(arch: Architecture, head: str) -> tuple[Weight, ...]:
    classifier = "qa_outputs" if head == "span" else "classification_head.out_proj"
    shared, *own = (f"@{name}.weight" for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens"))
    output = ("lm_head.weight",) if head == "seq2seq_lm" else ()
    if arch.encoder is None:  # files of both stacks may have one table for all
        tables = table("decoder/embeddings/tokens", own[1], shared, own[0])
    elif arch.shared_tokens:
        tables = table("encoder/embeddings/tokens", shared, *own, copies=() if arch.tied else tuple(own))
    else:  # each side has its own; a table that nothing reads is stored as well, as the files are no longer tied
        tables = table("encoder/embeddings/tokens", own[0], shared, own[1], copies=(shared,), kept=(shared,))
        tables += table("decoder/embeddings/tokens", own[1], shared, own[0], copies=output if arch.tied else ())
    return (
        *tables,
        *_stack("encoder"),
        *_stack("decoder"),
        *table("next_token/bias", "final_logits_bias", leading=True),
        *table("next_token/table", "lm_head.weight", shared, *own[::-1]),
        *matrix("pooler/dense", "classification_head.dense"),
        *matrix("classifier", classifier),
    )


def _stack(name: str) -> tuple[Weight, ...]:
    ours, theirs = f"{name}/layers", f"@{name}.layers.{{}}"
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    return (
        *table(f"{name}/embeddings/positions", f"@{name}.embed_positions.weight"),
        *scales(f"{name}/embeddings/norm", f"@{name}.layernorm_embedding"),
        *attention(f"{ours}/attention", f"{theirs}.self_attn", *projections),
        *scales(f"{ours}/attention_norm", f"{theirs}.self_attn_layer_norm"),
        *attention(f"{ours}/cross_attention", f"{theirs}.encoder_attn", *projections),
        *scales(f"{ours}/cross_attention_norm", f"{theirs}.encoder_attn_layer_norm"),
        *matrix(f"{ours}/feed_forward/up", f"{theirs}.fc1"),
        *matrix(f"{ours}/feed_forward/down", f"{theirs}.fc2"),
        *scales(f"{ours}/feed_forward_norm", f"{theirs}.final_layer_norm"),
        *scales(f"{name}/final_norm", f"@{name}.layer_norm"),
    )
