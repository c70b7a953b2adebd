"""Phi-3 (Abdin et al. 2024, arXiv:2404.14219): Llama with fused matrices, and LongRoPE for long sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Rate
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import ConfigField, ParamMapping, dense, with_defaults, without
from lm_research.models.families.decoder_weights import decoder_weights
from lm_research.models.families.layer_kinds import KEYS
from lm_research.models.families.llama_like import LlamaLike
from lm_research.models.rotary import SHARE, TRAINED


class Phi3(LlamaLike):
    """A decoder with Llama's layers and LongRoPE (Abdin et al. 2024)."""

    # Abdin et al. 2024, section 2, and the released models' config.json.
    sizes = {
        "mini": dict(num_layers=32, hidden_size=3072, num_heads=32, intermediate_size=8192),
        "medium": dict(num_layers=40, hidden_size=5120, num_heads=40, num_kv_heads=10, intermediate_size=17920),
    }
    run_traits = {**LlamaLike.run_traits, "norm_epsilon": 1e-5}
    model_types = {"phi3": "Phi3"}
    classes = without(LlamaLike.classes, "ForQuestionAnswering")
    config_fields = (
        *with_defaults(
            LlamaLike.config_fields,
            {
                "vocab_size": 32064,
                "hidden_size": 3072,
                "intermediate_size": 8192,
                "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5,
                "pad_token_id": 32000,
            },
        ),
        ConfigField("dropout_rate", "resid_pdrop", 0.0),
    )
    other_keys = {**LlamaLike.other_keys, "sliding_window": KEYS["sliding_window"], "embd_pdrop": Rate}

    _defaults = {SHARE: 1.0}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        hf = super().to_hf(arch) | {"embd_pdrop": arch.dropout_rate}
        trained = hf["rope_parameters"].get(TRAINED)
        return hf if trained is None else hf | {TRAINED: int(trained)}

    @override
    def _pattern(self, hf: Mapping[str, Any], fields: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """Read LongRoPE under its earlier names, with the positions of training next to the parameters, where transformers has them."""
        named = {**hf, TRAINED: hf.get(TRAINED) or 4096}
        for name in ("rope_scaling", "rope_parameters"):
            rope = hf.get(name) or {}
            if rope.get("rope_type", rope.get("type")) in ("su", "yarn"):
                named[name] = {**rope, "rope_type": "longrope"}
        return super()._pattern(named, fields)

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        ours, theirs = "decoder/layers", "@layers.{}"
        parts = (arch.num_heads, arch.kv_heads, arch.kv_heads)
        return (
            *decoder_weights("score"),
            *_fused(f"{ours}/attention", ("query", "key", "value"), f"{theirs}.self_attn.qkv_proj", parts),
            *_fused(f"{ours}/feed_forward", ("gate", "up"), f"{theirs}.mlp.gate_up_proj", (1, 1)),
        )


def _fused(path: str, names: tuple[str, ...], fused: str, parts: tuple[int, ...]) -> list[ParamMapping]:
    """Map the layers `names` below `path` to parts of one matrix."""
    pairs = (dense(f"{path}/{name}", fused, part=part, parts=parts) for part, name in enumerate(names))
    return [weight for pair in pairs for weight in pair]


FAMILIES.register("phi3")(Phi3())
