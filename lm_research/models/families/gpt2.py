"""GPT-2 (Radford et al. 2019): a pre-norm decoder with learned positions and a tied token table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Rate, Size
from lm_research.config import ModelConfig
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import (
    ConfigField,
    ParamMapping,
    dense,
    norm,
    tensor,
    without,
)
from lm_research.models.families.plain_decoder import PlainDecoder, classifier


class GPT2(PlainDecoder):
    """A pre-norm decoder with learned positions (Radford et al. 2019)."""

    # Radford et al. 2019, table 2 (widths and depths); 64-wide heads as in the released models.
    sizes = {
        "small": dict(num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072),
        "medium": dict(num_layers=24, hidden_size=1024, num_heads=16, intermediate_size=4096),
        "large": dict(num_layers=36, hidden_size=1280, num_heads=20, intermediate_size=5120),
        "xl": dict(num_layers=48, hidden_size=1600, num_heads=25, intermediate_size=6400),
    }
    model_types = {"gpt2": "GPT2"}
    packed_positions = "uncached"
    classes = {"LMHeadModel": "causal_lm", **without(PlainDecoder.classes, "ForCausalLM")}
    config_fields = (
        ConfigField("vocab_size", "vocab_size", 50257),
        ConfigField("hidden_size", "n_embd", 768, ("hidden_size",)),
        ConfigField("num_layers", "n_layer", 12, ("num_hidden_layers",)),
        ConfigField("num_heads", "n_head", 12, ("num_attention_heads",)),
        ConfigField("max_length", "n_positions", 1024, ("max_position_embeddings",)),
        ConfigField("activation", "activation_function", "gelu_new"),
        ConfigField("dropout_rate", "resid_pdrop", 0.1),
        ConfigField("attention_dropout_rate", "attn_pdrop", 0.1),
        ConfigField("norm_epsilon", "layer_norm_epsilon", 1e-5),
        ConfigField("init_std", "initializer_range", 0.02),
        ConfigField("scale_by_layer", "scale_attn_by_inverse_layer_idx", False),
        ConfigField("tied", "tie_word_embeddings", True),
        ConfigField("pad_id", "pad_token_id", -1),
    )
    other_keys = {"n_inner": Size, "scale_attn_weights": bool, "embd_pdrop": Rate}
    decoder_config: Mapping[str, Any] | None = {}  # it is always a decoder

    unread = (r"\.(crossattention|ln_cross_attn)\.",)  # in decoders without an encoder
    input_first = (".c_attn", ".q_attn", ".c_proj", ".c_fc")  # transformers' Conv1D

    @override
    def run_fields(self, config: ModelConfig) -> dict[str, Any]:
        # Section 2.3: weights of residual layers are scaled by 1/sqrt(number of residual layers), of which a block has two.
        residual = config.init_std / (2 * config.num_layers) ** 0.5
        return dict(activation="gelu_tanh", residual_init_std=residual)

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().read(hf)
        return fields | dict(
            intermediate_size=hf.get("n_inner") or 4 * fields["hidden_size"],
            attention_scale=1.0 if hf.get("scale_attn_weights") is False else 0.0,
            residual_init_std=fields["init_std"] / (2 * fields["num_layers"]) ** 0.5,
            token_types=True,
        )

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        return super().to_hf(arch) | {
            "n_inner": arch.intermediate_size,
            "embd_pdrop": arch.dropout_rate,
            "scale_attn_weights": arch.layers[0].attention_scale != 1.0,
        }

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        ours, theirs = "decoder/layers", "@h.{}"
        qkv = [
            dense(f"{ours}/attention/{name}", f"{theirs}.attn.c_attn", transpose=False, part=part, parts=(1, 1, 1))
            for part, name in enumerate(("query", "key", "value"))
        ]
        cross = f"{ours}/cross_attention"
        return (
            *tensor("decoder/embeddings/tokens", "@wte.weight"),
            *tensor("decoder/embeddings/positions", "@wpe.weight"),
            *(weight for pair in qkv for weight in pair),
            *dense(f"{ours}/attention/output", f"{theirs}.attn.c_proj", transpose=False, inputs=2),
            *norm(f"{ours}/attention_norm", f"{theirs}.ln_1"),
            *dense(f"{cross}/query", f"{theirs}.crossattention.q_attn", transpose=False),
            *dense(f"{cross}/key", f"{theirs}.crossattention.c_attn", transpose=False, part=0, parts=(1, 1)),
            *dense(f"{cross}/value", f"{theirs}.crossattention.c_attn", transpose=False, part=1, parts=(1, 1)),
            *dense(f"{cross}/output", f"{theirs}.crossattention.c_proj", transpose=False, inputs=2),
            *norm(f"{cross}_norm", f"{theirs}.ln_cross_attn"),
            *dense(f"{ours}/feed_forward/up", f"{theirs}.mlp.c_fc", transpose=False),
            *dense(f"{ours}/feed_forward/down", f"{theirs}.mlp.c_proj", transpose=False),
            *norm(f"{ours}/feed_forward_norm", f"{theirs}.ln_2"),
            *norm("decoder/final_norm", "@ln_f"),
            *tensor("next_token/table", "lm_head.weight"),
            *classifier(head),
        )


FAMILIES.register("gpt2")(GPT2())
