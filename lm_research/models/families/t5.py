"""T5 (Raffel et al. 2019, arXiv:1910.10683): an encoder-decoder with relative positions and no biases.

v1.0 has ReLU and a scaled output that is tied to the token table; v1.1 has gated GELU and its own output table (Shazeer 2020).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

from typing_extensions import override

from lm_research.common.documents import short
from lm_research.config import ModelConfig, key
from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.families.base import FAMILIES, Family
from lm_research.models.families.common import (
    ACTIVATION_NAMES,
    ConfigField,
    EncoderDecoderConfig,
    ParamMapping,
    encoder_decoder,
    given,
    write_keys,
)
from lm_research.models.families.t5_sizes import SIZES
from lm_research.models.families.t5_weights import weights
from lm_research.models.limits import Depth

VARIANTS = {
    "v1.0": dict(activation="relu", gated=False, tied=True),
    "v1.1": dict(activation="gelu_tanh", gated=True, tied=False),
}


@dataclasses.dataclass(frozen=True)
class T5Config(EncoderDecoderConfig):
    """Model section of T5."""

    variant: str | None = key(None, "T5 version; None is v1.1.", choices=tuple(VARIANTS))


class T5(Family):
    """An encoder-decoder with relative positions and no biases (Raffel et al. 2019)."""

    sizes = SIZES
    traits = dict(norm="pre", norm_kind="rms", positions="relative", attention_scale=1.0, final_dropout=True)
    traits |= dict(qkv_bias=False, output_bias=False, mlp_bias=False, pooling="eos", pooler_activation="tanh")
    frozen_padding = False

    model_types = {"t5": "T5"}
    classes = {
        "ForConditionalGeneration": "seq2seq_lm",
        "ForSequenceClassification": "classification",
        "ForTokenClassification": "token_classification",
        "ForQuestionAnswering": "span",
        "EncoderModel": "none",
        "Model": "none",
    }
    encoder_classes: tuple[str, ...] = ("EncoderModel", "ForTokenClassification")
    config_fields: tuple[ConfigField, ...] = (
        ConfigField("vocab_size", "vocab_size", 32128),
        ConfigField("hidden_size", "d_model", 512),
        ConfigField("head_size", "d_kv", 64),
        ConfigField("intermediate_size", "d_ff", 2048),
        ConfigField("num_heads", "num_heads", 8),
        ConfigField("relative_buckets", "relative_attention_num_buckets", 32),
        ConfigField("relative_max_distance", "relative_attention_max_distance", 128),
        ConfigField("dropout_rate", "dropout_rate", 0.1),
        ConfigField("norm_epsilon", "layer_norm_epsilon", 1e-6),
        ConfigField("pad_id", "pad_token_id", 0),
        ConfigField("eos_id", "eos_token_id", 1),
    )
    other_keys = dict.fromkeys(("num_layers", "num_decoder_layers"), Depth) | {"feed_forward_proj": str}
    other_keys |= dict.fromkeys(("scale_decoder_outputs", "tie_word_embeddings"), bool)

    redundant = (r"layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",)
    tie_flags = ()  # its tie_word_embeddings defines whether outputs are scaled; the tensors in the files define what is tied

    @override
    def architecture(self, config: Any, vocab_size: int) -> Architecture:
        # Relative positions are unlimited: model.max_length only limits the examples of a run.
        return encoder_decoder(config, vocab_size, **{**self.traits, **self.run_fields(config), "max_length": 0})

    @override
    def run_fields(self, config: T5Config) -> dict[str, Any]:
        return fields_of(config.variant or "v1.1", config)

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        fields = self.read(hf)
        fields |= dict.fromkeys(("attention_dropout_rate", "activation_dropout_rate"), fields["dropout_rate"])
        kind = given(hf, "feed_forward_proj", "relu")
        gate, _, name = kind.rpartition("-")
        name = "gelu_new" if kind == "gated-gelu" else name
        if gate not in ("", "gated") or name not in ACTIVATION_NAMES:
            raise PretrainedError(f"config.json: feed_forward_proj is {short(kind)}; it must be NAME or gated-NAME.")
        fields |= dict(activation=ACTIVATION_NAMES[name], gated=bool(gate), max_length=0)
        # Version 5 of transformers writes scale_decoder_outputs instead of tie_word_embeddings. A model whose output is not scaled
        # has its own output table, unless it was saved without one.
        scaled = given(hf, "scale_decoder_outputs", given(hf, "tie_word_embeddings", True))
        output: dict[str, Any] = dict(
            tied=scaled or "lm_head.weight" not in names, logit_scale=fields["hidden_size"] ** -0.5 if scaled else 1.0
        )
        layers = hf.get("num_layers") or 6
        encoder = from_flat(num_layers=layers, **{k: v for k, v in fields.items() if k != "eos_id"}, **self.traits)
        decoder_layers = hf.get("num_decoder_layers") or layers
        return from_flat(num_layers=decoder_layers, causal=True, encoder=encoder, **fields, **output, **self.traits)

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        encoder = arch.encoder or arch
        name = {ours: name for name, ours in reversed(ACTIVATION_NAMES.items())}[arch.activation]
        kind = f"gated-{'gelu' if name == 'gelu_new' else name}" if arch.layers[0].gated else name
        scaled = arch.logit_scale != 1.0
        return write_keys(arch.replace(head_size=arch.head_width), self.config_fields) | {
            "num_layers": encoder.num_layers,
            "num_decoder_layers": arch.num_layers,
            "feed_forward_proj": kind,
            "tie_word_embeddings": scaled,
            "scale_decoder_outputs": scaled,
            "is_encoder_decoder": arch.encoder is not None,
            "decoder_start_token_id": max(arch.pad_id, 0),
        }

    @override
    def prefix(self, arch: Architecture, head: str, kind: str) -> str:
        return "transformer." if head in ("classification", "token_classification") else ""

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        return weights(arch, head)


def fields_of(variant: str, config: ModelConfig) -> dict[str, Any]:
    """Fields of a new model of one of VARIANTS."""
    fields = VARIANTS[variant] | dict(activation_dropout_rate=config.dropout_rate, norm_epsilon=1e-6, eos_id=1)
    return fields | {"logit_scale": config.hidden_size**-0.5 if fields["tied"] else 1.0}


FAMILIES.register("t5", T5Config)(T5())
