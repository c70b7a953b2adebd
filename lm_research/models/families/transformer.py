"""The Transformer (Vaswani et al. 2017, arXiv:1706.03762): sinusoidal positions, one token table for both stacks.

Its checkpoints in transformers' format are those of Marian (Junczys-Dowmunt et al. 2018).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.bart import Bart
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import EncoderDecoderConfig, ParamMapping, with_defaults

# Stored names of the tables of sinusoidal positions, by stack.
SINUSOIDS = {name: f"@{name}.embed_positions.weight" for name in ("encoder", "decoder")}


class Transformer(Bart):
    """The encoder-decoder with sinusoidal positions (Vaswani et al. 2017)."""

    # Vaswani et al. 2017, table 3; vocabulary of 37,000 for English-German.
    sizes = {
        "base": dict(num_layers=6, hidden_size=512, num_heads=8, intermediate_size=2048),
        "big": dict(num_layers=6, hidden_size=1024, num_heads=16, intermediate_size=4096),
    }
    traits = dict(norm="post", positions="sinusoidal")
    # The paper's attention projections have no biases; its feed-forward layers have.
    run_traits = dict(activation="relu", norm_epsilon=1e-6, qkv_bias=False, output_bias=False)

    model_types = {"marian": "Marian"}
    config_fields = with_defaults(Bart.config_fields, {"vocab_size": 58101, "pad_token_id": 58100, "eos_token_id": 0})
    classes = {"MTModel": "seq2seq_lm", "ForCausalLM": "causal_lm", "Model": "none"}
    sinusoids = SINUSOIDS

    _scales_new = True

    tie_flags = ("tie_word_embeddings", "share_encoder_decoder_embeddings")

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        return super().read(hf) | {"head_bias": True}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        hf = super().to_hf(arch) | {"decoder_vocab_size": arch.vocab_size, "tie_word_embeddings": arch.tied}
        if arch.encoder is None:
            return hf
        return hf | {
            "decoder_start_token_id": max(arch.pad_id, 0),
            "share_encoder_decoder_embeddings": arch.shared_tokens,
        }

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        """Those of BART, except that untied tables have no third, shared copy: Marian's untied checkpoints do not store one."""
        mappings = super().weights(arch, head)
        return mappings if arch.shared_tokens else tuple(dataclasses.replace(one, copies=()) for one in mappings)


FAMILIES.register("transformer", EncoderDecoderConfig)(Transformer())
