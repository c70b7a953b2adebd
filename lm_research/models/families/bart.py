"""BART (Lewis et al. 2019, arXiv:1910.13461): a post-norm encoder-decoder with learned positions, trained to denoise."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Rate, Size
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.families.bart_weights import weights
from lm_research.models.families.base import FAMILIES, Family
from lm_research.models.families.common import (
    ConfigField,
    EncoderDecoderConfig,
    ParamMapping,
    encoder_decoder,
    given,
    read_keys,
    with_defaults,
    write_keys,
)

STACK_KEYS = ("num_layers", "layers", 12), ("intermediate_size", "ffn_dim", 4096), ("num_heads", "attention_heads", 16)


class Bart(Family):
    """A post-norm encoder-decoder with learned positions (Lewis et al. 2019)."""

    # Lewis et al. 2019, section 2.1 and the released checkpoints: layers of each stack; 1,024 positions, vocabulary 50,265.
    sizes = {
        "base": dict(num_layers=6, hidden_size=768, num_heads=12, intermediate_size=3072, max_length=1024),
        "large": dict(num_layers=12, hidden_size=1024, num_heads=16, intermediate_size=4096, max_length=1024),
    }
    # Two rows of the position tables come before position 0.
    traits = dict(norm="post", embedding_norm=True, position_offset=2, pooling="eos", head_bias=True)
    run_traits = dict(activation="gelu", norm_epsilon=1e-5, pad_id=1, eos_id=2)
    # Labels of the decoder without its encoder are not shifted: each is at the position that predicts it.
    loss_heads = {"causal_lm": "seq2seq_lm"}

    model_types = {"bart": "Bart"}
    classes = {
        "ForConditionalGeneration": "seq2seq_lm",
        "ForCausalLM": "causal_lm",
        "ForSequenceClassification": "classification",
        "ForQuestionAnswering": "span",
        "Model": "none",
    }
    config_fields: tuple[ConfigField, ...] = (
        ConfigField("vocab_size", "vocab_size", 50265),
        ConfigField("hidden_size", "d_model", 1024),
        ConfigField("max_length", "max_position_embeddings", 1024),
        ConfigField("activation", "activation_function", "gelu"),
        ConfigField("dropout_rate", "dropout", 0.1),
        ConfigField("attention_dropout_rate", "attention_dropout", 0.0),
        ConfigField("activation_dropout_rate", "activation_dropout", 0.0),
        ConfigField("init_std", "init_std", 0.02),
        ConfigField("pad_id", "pad_token_id", 1),
        ConfigField("eos_id", "eos_token_id", 2),
    )
    other_keys = {
        "scale_embedding": bool,
        "tie_word_embeddings": bool,
        "share_encoder_decoder_embeddings": bool,
        "decoder_vocab_size": Size,
        "is_decoder": bool,
        "is_encoder_decoder": bool,
        **dict.fromkeys(("encoder_layerdrop", "decoder_layerdrop"), Rate),
    }
    decoder_config: Mapping[str, Any] | None = {"is_decoder": True, "is_encoder_decoder": False}

    _scales_new: bool = False  # whether embeddings of a new model are scaled by sqrt(D)
    _scales_read: bool = False  # the default of scale_embedding
    _stack_defaults: Mapping[str, int] = {}  # those that differ from STACK_KEYS, by key or by stack and key

    base_prefix = "model."
    redundant: tuple[str, ...] = (r"^(model\.)?version$",)
    unread = (r"\.encoder_attn(_layer_norm)?\.",)  # in decoders without an encoder

    @override
    def architecture(self, config: EncoderDecoderConfig, vocab_size: int) -> Architecture:
        return encoder_decoder(config, vocab_size, **{**self.traits, **self.run_fields(config)})

    @override
    def run_fields(self, config: EncoderDecoderConfig) -> dict[str, Any]:
        return {**self.run_traits, **({"embedding_scale": config.hidden_size**0.5} if self._scales_new else {})}

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        fields = {**self.traits, **self.read(hf)}
        if given(hf, "scale_embedding", self._scales_read):
            fields["embedding_scale"] = fields["hidden_size"] ** 0.5

        def stack(name: str) -> dict[str, Any]:
            defaults = {f"{name}_{key}": value for key, value in self._stack_defaults.items()}
            defaults |= self._stack_defaults
            keys = [ConfigField(field, f"{name}_{key}", default) for field, key, default in STACK_KEYS]
            return read_keys(hf, with_defaults(keys, defaults))

        of_decoder = ("eos_id", "head_bias", "norm_before_positions")
        inner = {name: value for name, value in fields.items() if name not in of_decoder}
        fields["tied"] = given(hf, "tie_word_embeddings", True)
        fields["shared_tokens"] = fields["tied"] and given(hf, "share_encoder_decoder_embeddings", True)
        fields["vocab_size"] = hf.get("decoder_vocab_size") or fields["vocab_size"]
        fields["prompt_positions"] = "slots"
        if is_decoder_only(hf):
            fields |= {"shared_tokens": True, "head_bias": False}
            return from_flat(causal=True, **fields, **stack("decoder"))
        encoder = from_flat(**inner, **stack("encoder"))
        return from_flat(causal=True, encoder=encoder, **fields, **stack("decoder"))

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        stacks = {"encoder": arch.encoder, "decoder": arch} if arch.encoder is not None else {"decoder": arch}
        hf = write_keys(arch, self.config_fields) | {
            "vocab_size": (arch.encoder or arch).vocab_size,
            "scale_embedding": (arch.encoder or arch).embedding_scale != 1.0,
            "tie_word_embeddings": arch.tied and (arch.encoder is None or arch.shared_tokens),
        }
        for name, stack in stacks.items():
            hf |= {f"{name}_{key}": getattr(stack, field) for field, key, _ in STACK_KEYS}
        if arch.encoder is None:
            return {**hf, **(self.decoder_config or {})}
        return hf | {"is_encoder_decoder": True, "decoder_start_token_id": arch.eos_id}

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        return weights(arch, head)


def is_decoder_only(hf: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of the decoder without its encoder."""
    classes = [str(name) for name in hf.get("architectures") or ()]
    flagged = bool(hf.get("is_decoder")) and not given(hf, "is_encoder_decoder", True)
    return flagged or any(name.endswith("ForCausalLM") for name in classes)


FAMILIES.register("bart", EncoderDecoderConfig)(Bart())
