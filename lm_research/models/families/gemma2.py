"""Gemma 2 (Gemma Team 2024, arXiv:2408.00118): Gemma with norms before and after each branch, soft caps, and windows in every other layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta
from typing_extensions import override

from lm_research.config import ModelConfig, key
from lm_research.models.architecture import Architecture
from lm_research.models.families import layer_kinds
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import ParamMapping, with_defaults
from lm_research.models.families.decoder_weights import decoder_weights
from lm_research.models.families.gemma import Gemma
from lm_research.models.families.layer_kinds import FULL, SLIDING
from lm_research.models.layer_spec import LayerSpec
from lm_research.models.limits import Scale

# Our norms of a block -> theirs.
NORMS = {
    "attention_norm": "input_layernorm",
    "attention_output_norm": "post_attention_layernorm",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "feed_forward_output_norm": "post_feedforward_layernorm",
}


@dataclasses.dataclass(frozen=True)
class GemmaConfig(ModelConfig):
    """Model section of Gemma 2 and its successors."""

    window: int | None = key(
        None,
        "Number of latest positions that windowed layers attend to; None is the first release's.",
        low=1,
        high=2**24,
    )
    query_pre_attn_scalar: float | None = key(
        None, "Scores are divided by the root of this number; None is the width of a head.", low=1e-6, high=1e9
    )


class Gemma2(Gemma):
    """Gemma with norms around each branch, soft caps, and windows in every other layer (Gemma Team 2024)."""

    # Gemma Team 2024 (2408.00118), table 1; the 27B's scores are divided by the root of 4608 / 32.
    sizes = {
        "2b": dict(num_layers=26, hidden_size=2304, num_heads=8, num_kv_heads=4, head_size=256, intermediate_size=9216),
        "9b": dict(
            num_layers=42, hidden_size=3584, num_heads=16, num_kv_heads=8, head_size=256, intermediate_size=14336
        ),
        "27b": dict(
            num_layers=46,
            hidden_size=4608,
            num_heads=32,
            num_kv_heads=16,
            head_size=128,
            intermediate_size=36864,
            query_pre_attn_scalar=144.0,
        ),
    }
    traits = {**Gemma.traits, "norm": "sandwich"}
    run_traits = {**Gemma.run_traits, "window": 4096, "logit_cap": 30.0, "score_cap": 50.0}

    model_types = {"gemma2": "Gemma2"}
    config_fields = with_defaults(
        [
            dataclasses.replace(field, name="hidden_activation") if field.field == "activation" else field
            for field in Gemma.config_fields
        ],
        {"hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8, "intermediate_size": 9216},
    )
    other_keys = {
        **Gemma.other_keys,
        **layer_kinds.KEYS,
        "query_pre_attn_scalar": Annotated[float, Meta(ge=1e-6, le=1e9)],
        "final_logit_softcapping": Scale,
        "attn_logit_softcapping": Scale,
    }

    _defaults = {
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
    }
    _period = 2  # every so many layers one has no window

    @override
    def architecture(self, config: Any, vocab_size: int) -> Architecture:
        arch = super().architecture(config, vocab_size)
        near = arch.layers[0]
        return arch.replace(layers=(near,) * (self._period - 1) + (self._full(near),))

    @override
    def run_fields(self, config: Any) -> Mapping[str, Any]:
        scale = _scale(config.query_pre_attn_scalar, config.head_size or config.hidden_size / config.num_heads)
        window = {"window": config.window} if config.window else {}
        return {**super().run_fields(config), "attention_scale": scale, **window}

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        return super().read(hf) | {
            "attention_scale": _scale(self._get(hf, "query_pre_attn_scalar"), self._get(hf, "head_dim")),
            "logit_cap": self._get(hf, "final_logit_softcapping") or 0.0,
            "score_cap": self._get(hf, "attn_logit_softcapping") or 0.0,
        }

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        last, scalar = arch.layer_specs[-1], float(arch.head_width)
        if last.attention_scale:
            scalar = last.attention_scale**-2
        return super().to_hf(arch) | {
            "layer_types": [FULL if spec.attention == "full" else SLIDING for spec in arch.layer_specs],
            "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 * scalar else scalar,
            "final_logit_softcapping": arch.logit_cap or None,
            "attn_logit_softcapping": last.score_cap or None,
        }

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        return decoder_weights("score", norms=NORMS)

    @override
    def _kinds(self, hf: Mapping[str, Any], depth: int, window: int) -> list[str]:
        return [SLIDING if number % self._period else FULL for number in range(1, depth + 1)]

    def _full(self, near: LayerSpec) -> LayerSpec:
        """The layers without a window of a new model, whose others are `near`."""
        return dataclasses.replace(near, attention="full", window=0)


def _scale(scalar: float | None, head_size: float) -> float:
    """The factor on scores for a query_pre_attn_scalar; 0 if it is the default of all families."""
    return 0.0 if scalar in (None, head_size) else scalar**-0.5


FAMILIES.register("gemma2", GemmaConfig)(Gemma2())
