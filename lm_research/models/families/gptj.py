"""GPT-J (Wang and Komatsuzaki 2021): attention and feed-forward layer in parallel after one norm, and rotary positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Rate, Size
from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import (
    FIX,
    ConfigField,
    ParamMapping,
    attention,
    dense,
    norm,
    tensor,
    without,
)
from lm_research.models.families.plain_decoder import PlainDecoder, classifier, size


class GPTJ(PlainDecoder):
    """A decoder whose attention and feed-forward layer run in parallel, with rotary positions (Wang and Komatsuzaki 2021)."""

    # The released model's config.json.
    sizes = {"6b": size(28, 4096, 16)}
    traits = PlainDecoder.traits | dict(
        norm="parallel",
        shared_norm=True,
        positions="rotary",
        rotary_interleaved=True,
        qkv_bias=False,
        output_bias=False,
        head_bias=True,
        train_head_bias=True,
    )
    run_traits = dict(activation="gelu_tanh", rotary_fraction=0.25, tied=False)

    model_types = {"gptj": "GPTJ"}
    packed_positions = "uncached"
    classes = without(PlainDecoder.classes, "ForTokenClassification")
    config_fields = (
        ConfigField("vocab_size", "vocab_size", 50400),
        ConfigField("hidden_size", "n_embd", 4096, ("hidden_size",)),
        ConfigField("num_layers", "n_layer", 28, ("num_hidden_layers",)),
        ConfigField("num_heads", "n_head", 16, ("num_attention_heads",)),
        ConfigField("max_length", "n_positions", 2048, ("max_position_embeddings",)),
        ConfigField("activation", "activation_function", "gelu_new"),
        ConfigField("dropout_rate", "resid_pdrop", 0.0),
        ConfigField("attention_dropout_rate", "attn_pdrop", 0.0),
        ConfigField("norm_epsilon", "layer_norm_epsilon", 1e-5),
        ConfigField("init_std", "initializer_range", 0.02),
        ConfigField("tied", "tie_word_embeddings", False),
        ConfigField("pad_id", "pad_token_id", -1),
    )
    other_keys = {"n_inner": Size, "rotary_dim": Size, "embd_pdrop": Rate}

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().read(hf)
        width, rotated = fields["hidden_size"] // fields["num_heads"], hf.get("rotary_dim") or 64
        if rotated > width or rotated % 2:
            raise PretrainedError(
                f"config.json: rotary_dim is {rotated}, but heads are {width} wide; it must be an even number up to this width. {FIX}"
            )
        fraction = rotated / width
        return fields | dict(
            intermediate_size=hf.get("n_inner") or 4 * fields["hidden_size"],
            rotary_fraction=fraction if int(width * fraction) == rotated else math.nextafter(fraction, 1.0),
            token_types=True,
        )

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        return super().to_hf(arch) | {
            "n_inner": arch.intermediate_size,
            "rotary_dim": arch.layer_specs[0].rotary_width,
            "embd_pdrop": arch.dropout_rate,
        }

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        ours, theirs = "decoder/layers", "@h.{}"
        return (
            *tensor("decoder/embeddings/tokens", "@wte.weight"),
            *attention(f"{ours}/attention", f"{theirs}.attn", "q_proj", "k_proj", "v_proj", "out_proj"),
            *norm(f"{ours}/attention_norm", f"{theirs}.ln_1"),
            *dense(f"{ours}/feed_forward/up", f"{theirs}.mlp.fc_in"),
            *dense(f"{ours}/feed_forward/down", f"{theirs}.mlp.fc_out"),
            *norm("decoder/final_norm", "@ln_f"),
            *tensor("next_token/table", "lm_head.weight"),
            *tensor("next_token/bias", "lm_head.bias"),
            *classifier(head),
        )


FAMILIES.register("gptj")(GPTJ())
