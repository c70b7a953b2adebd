"""GPT-BERT (Charpentier and Samuel 2024, arXiv:2410.24159): one stack that predicts masked tokens and, with causal attention, next ones.

Its checkpoints have the layout of the authors' code (https://github.com/ltgoslo/gpt-bert), which transformers does not include. A masked
token is predicted from the state before it, as a next token is. The first norm of the heads is here the last norm of the stack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

from typing_extensions import override

from lm_research.config import ModelConfig, key
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.families.base import FAMILIES, Family
from lm_research.models.families.common import ConfigField, ParamMapping, dense, given, norm, tensor, write_keys
from lm_research.models.families.encoder_weights import with_paths

_PARTS: dict[str, Any] = dict.fromkeys(
    "embedding_norm relative_norm mix_norm inner_norm gated pooler_norm token_pooler head_transform masked_shift".split(),
    True,
) | dict.fromkeys("norm_scale norm_bias position_projections mlp_bias".split(), False)


@dataclasses.dataclass(frozen=True)
class GptBertConfig(ModelConfig):
    """Model section of GPT-BERT."""

    causal: bool = key(False, "Whether positions attend only to earlier ones, to predict next tokens.")
    attention_gate: bool = key(True, "Whether a gate multiplies the mixed values of the attention.")
    depth_weights: bool = key(True, "Whether states are weighted sums of all earlier ones (DenseFormer).")


class GptBert(Family):
    """One stack that predicts masked tokens and, with causal attention, next ones (Charpentier and Samuel 2024)."""

    # configs/ of the authors' code: 30M parameters with a vocabulary of 8,192 and 119M with one of 16,384. Initial weights have a
    # deviation of sqrt(2 / (5 D)).
    sizes = {
        "small": dict(num_layers=12, hidden_size=384, num_heads=6, intermediate_size=1280, init_std=0.0323),
        "base": dict(num_layers=12, hidden_size=768, num_heads=12, intermediate_size=2560, init_std=0.0228),
    }
    traits = _PARTS | dict(
        norm="pre",
        positions="disentangled",
        position_terms=("query", "key"),
        activation="gelu_tanh",
        head_activation="gelu",
        pooler_activation="gelu",
        init="truncated_normal",
    )
    frozen_padding = False

    model_types = {"gpt_bert": "GPTBERT"}
    reference = "its authors' code (ltgoslo/gpt-bert), written again in the tests"
    classes = {
        "ForMaskedLM": "masked_lm",
        "ForCausalLM": "causal_lm",
        "ForSequenceClassification": "classification",
        "ForTokenClassification": "token_classification",
    }
    config_fields = (
        ConfigField("vocab_size", "vocab_size", 16384),
        ConfigField("hidden_size", "hidden_size", 768),
        ConfigField("num_layers", "num_hidden_layers", 12),
        ConfigField("num_heads", "num_attention_heads", 12),
        ConfigField("intermediate_size", "intermediate_size", 2560),
        ConfigField("max_length", "max_position_embeddings", 512),
        ConfigField("relative_buckets", "position_bucket_size", 32),
        ConfigField("dropout_rate", "hidden_dropout_prob", 0.1),
        ConfigField("attention_dropout_rate", "attention_probs_dropout_prob", 0.1),
        ConfigField("norm_epsilon", "layer_norm_eps", 1e-5),
        ConfigField("depth_weights", "depth_weights", False),
    )
    other_keys = {"attention_gate": bool}
    encoder_config, decoder_config = {"is_decoder": False}, {"is_decoder": True}

    redundant = (r"position_indices$",)
    unread = (r"^transformer\.classifier\.",)  # the token head in files of classifiers

    @override
    def run_fields(self, config: GptBertConfig) -> dict[str, Any]:
        return dict(
            causal=config.causal,
            attention_gate="gelu" if config.attention_gate else "",
            depth_weights=config.depth_weights,
            relative_buckets=63,
            relative_max_distance=512,
        )

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        # The authors' config.json has neither of both keys.
        fields = self.read({"depth_weights": any("dwa_modules." in name for name in names), **hf})
        gated = given(hf, "attention_gate", any("in_proj_vg" in name for name in names))
        writes = any(str(name).endswith("ForCausalLM") for name in given(hf, "architectures", ()))
        fields |= dict(
            relative_buckets=2 * fields["relative_buckets"] - 1,
            relative_max_distance=fields["max_length"],
            attention_gate="gelu" if gated else "",
            causal=given(hf, "is_decoder", writes),
        )
        return from_flat(**fields, **self.traits)

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        return write_keys(arch, self.config_fields) | {
            "attention_gate": bool(arch.layers[0].attention_gate),
            "is_decoder": arch.causal,
            "position_bucket_size": (arch.relative_buckets + 1) // 2,
            "max_position_embeddings": arch.relative_max_distance,
        }

    @override
    def prefix(self, arch: Architecture, head: str, kind: str) -> str:
        return "transformer." if head.endswith("classification") else ""

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        ours, attention = "encoder/layers", "@transformer.attention_layers.{}"
        mlp, average = "@transformer.mlp_layers.{}.mlp", "@transformer.dwa_modules.alphas"
        rows = [tensor(f"encoder/depth_weights/row_{n}", f"{average}.{n}") for n in range(2 * arch.num_layers)]
        value, parts = ("in_proj_vg", (1, 1)) if arch.layers[0].attention_gate else ("in_proj_v", (1,))
        mappings = (
            *tensor("encoder/embeddings/tokens", "@embedding.word_embedding.weight"),
            *tensor("encoder/relative_embeddings", "@embedding.relative_embedding"),
            *norm("encoder/relative_norm", "@embedding.relative_layer_norm"),
            *dense(f"{ours}/attention/query", f"{attention}.in_proj_qk", part=0, parts=(1, 1)),
            *dense(f"{ours}/attention/key", f"{attention}.in_proj_qk", part=1, parts=(1, 1)),
            *dense(f"{ours}/attention/value", f"{attention}.{value}", part=0, parts=parts),
            *dense(f"{ours}/attention/gate", f"{attention}.in_proj_vg", part=1, parts=(1, 1)),
            *dense(f"{ours}/attention/output", f"{attention}.out_proj", inputs=2),
            *dense(f"{ours}/feed_forward/up", f"{mlp}.1", part=0, parts=(1, 1)),
            *dense(f"{ours}/feed_forward/gate", f"{mlp}.1", part=1, parts=(1, 1)),
            *dense(f"{ours}/feed_forward/down", f"{mlp}.4"),
            *(weight for row in rows for weight in row),
            *dense("masked_lm/dense", "classifier.nonlinearity.1"),
            *tensor("masked_lm/bias", "classifier.nonlinearity.5.bias"),
            *tensor("masked_lm/table", "classifier.nonlinearity.5.weight"),
            *dense("pooler/dense", "classifier.nonlinearity.1"),
            *dense("classifier", "classifier.nonlinearity.5"),
        )
        return with_paths(mappings, arch, head)


FAMILIES.register("gpt_bert", GptBertConfig)(GptBert())
