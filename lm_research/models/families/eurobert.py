"""EuroBERT (Boizard et al. 2025, arXiv:2503.05500): Llama's layers with bidirectional attention, trained on masked tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import ParamMapping, dense, given, tensor, with_defaults
from lm_research.models.families.decoder_weights import decoder_weights
from lm_research.models.families.llama_like import LlamaLike

# Value of classifier_pooling in config.json -> our pooling.
POOLINGS = {"late": "late_mean", "mean": "mean", "bos": "first"}


class EuroBert(LlamaLike):
    """An encoder with Llama's layers, trained on masked tokens (Boizard et al. 2025)."""

    # Boizard et al. 2025, table 6.
    sizes = {
        "210m": dict(num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072),
        "610m": dict(num_layers=26, hidden_size=1152, num_heads=18, num_kv_heads=6, intermediate_size=4096),
        "2.1b": dict(num_layers=32, hidden_size=2304, num_heads=18, num_kv_heads=6, intermediate_size=6144),
    }
    traits = {name: value for name, value in LlamaLike.traits.items() if name != "pooling"} | dict(
        causal=False, pooler_activation="gelu", masked_transform=False
    )
    run_traits = LlamaLike.run_traits | dict(
        norm_epsilon=1e-5, masked_bias=False, pooling="late_mean", rotary_theta=250000.0
    )

    model_types = {"eurobert": "EuroBert"}
    classes = {
        "ForMaskedLM": "masked_lm",
        "ForSequenceClassification": "classification",
        "ForTokenClassification": "token_classification",
        "Model": "none",
    }
    config_fields = with_defaults(
        LlamaLike.config_fields,
        {
            "vocab_size": 128256,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "pad_token_id": 128001,
        },
    )
    other_keys = {
        **LlamaLike.other_keys,
        "attention_bias": bool,
        "mlp_bias": bool,
        "classifier_pooling": Literal["late", "mean", "bos"],
        "clf_pooling": Literal["late", "mean", "bos"],  # the same, in files of the model's own code
    }

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().read(hf)
        pooling = given(hf, "classifier_pooling", given(hf, "clf_pooling", "late"))
        return fields | {"pooling": POOLINGS[pooling], "masked_bias": given(hf, "mlp_bias", False)}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        names = {ours: theirs for theirs, ours in POOLINGS.items()}
        return super().to_hf(arch) | {"classifier_pooling": names[arch.pooling]}

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        return (
            *decoder_weights("classifier", "encoder"),
            *tensor("masked_lm/table", "lm_head.weight"),
            *tensor("masked_lm/bias", "lm_head.bias"),
            # The model without a head has no pooler, although files with one have a tensor of that name.
            *dense("pooler/dense", "@pooler.dense" if head == "none" else "dense"),
        )


FAMILIES.register("eurobert")(EuroBert())
