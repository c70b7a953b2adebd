"""GPT-Neo (Black et al. 2021): GPT-2 whose layers alternate between full attention and a window, with unscaled scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import Any, Literal

from typing_extensions import override

from lm_research.common.documents import Rate, Size
from lm_research.config import ModelConfig
from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import FIX, ConfigField, ParamMapping, attention, dense, norm, tensor
from lm_research.models.families.layer_kinds import shortest
from lm_research.models.families.plain_decoder import PlainDecoder, classifier, size


class GPTNeo(PlainDecoder):
    """A pre-norm decoder in which layers with full attention and with a window alternate (Black et al. 2021)."""

    # The released models' config.json files.
    sizes = {
        "125m": size(12, 768, 12),
        "1.3b": size(24, 2048, 16),
        "2.7b": size(32, 2560, 20),
    }
    traits = PlainDecoder.traits | dict(qkv_bias=False, attention_scale=1.0)
    run_traits = dict(activation="gelu_tanh", window=256)

    model_types = {"gpt_neo": "GPTNeo"}
    packed_positions = "uncached"
    config_fields = (
        ConfigField("vocab_size", "vocab_size", 50257),
        ConfigField("hidden_size", "hidden_size", 2048),
        ConfigField("num_layers", "num_layers", 24, ("num_hidden_layers",)),
        ConfigField("num_heads", "num_heads", 16, ("num_attention_heads",)),
        ConfigField("max_length", "max_position_embeddings", 2048),
        ConfigField("activation", "activation_function", "gelu_new"),
        ConfigField("dropout_rate", "resid_dropout", 0.0),
        ConfigField("attention_dropout_rate", "attention_dropout", 0.0),
        ConfigField("norm_epsilon", "layer_norm_epsilon", 1e-5),
        ConfigField("init_std", "initializer_range", 0.02),
        ConfigField("tied", "tie_word_embeddings", True),
        ConfigField("pad_id", "pad_token_id", -1),
    )
    other_keys = {
        "intermediate_size": Size,
        "embed_dropout": Rate,
        "window_size": Size,
        "attention_types": list[tuple[list[Literal["global", "local"]], Size]],
    }

    @override
    def architecture(self, config: ModelConfig, vocab_size: int) -> Architecture:
        arch = super().architecture(config, vocab_size)
        return arch.replace(layers=(dataclasses.replace(arch.layers[0], attention="full", window=0), *arch.layers))

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        fields = self.read(hf)
        types = hf.get("attention_types") or [[["global", "local"], 12]]
        kinds = [kind for some, repeats in types for kind in some * repeats]
        if len(kinds) != fields["num_layers"]:
            raise PretrainedError(
                f"config.json: attention_types describes {len(kinds)} layers, but num_layers is {fields['num_layers']}; they must be equal. {FIX}"
            )
        windows = {"global": 0, "local": hf.get("window_size") or 256}
        fields["intermediate_size"] = hf.get("intermediate_size") or 4 * fields["hidden_size"]
        pattern = shortest([{"window": windows[kind]} for kind in kinds])
        return from_flat(pattern, **{**self.traits, **fields}, token_types=True)

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        return super().to_hf(arch) | {
            "intermediate_size": arch.intermediate_size,
            "embed_dropout": arch.dropout_rate,
            "window_size": max(spec.window for spec in arch.layers) or 256,
            "attention_types": [[["local" if spec.window else "global" for spec in arch.layer_specs], 1]],
        }

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        ours, theirs = "decoder/layers", "@h.{}"
        return (
            *tensor("decoder/embeddings/tokens", "@wte.weight"),
            *tensor("decoder/embeddings/positions", "@wpe.weight"),
            *attention(f"{ours}/attention", f"{theirs}.attn.attention", "q_proj", "k_proj", "v_proj", "out_proj"),
            *norm(f"{ours}/attention_norm", f"{theirs}.ln_1"),
            *dense(f"{ours}/feed_forward/up", f"{theirs}.mlp.c_fc"),
            *dense(f"{ours}/feed_forward/down", f"{theirs}.mlp.c_proj"),
            *norm(f"{ours}/feed_forward_norm", f"{theirs}.ln_2"),
            *norm("decoder/final_norm", "@ln_f"),
            *tensor("next_token/table", "lm_head.weight"),
            *classifier(head),
        )


FAMILIES.register("gpt_neo")(GPTNeo())
