"""LongT5 (Guo et al. 2021, arXiv:2112.07916): T5 v1.1 for long sources, whose encoder attends to windows and to sums of blocks.

Scores are computed for all pairs of positions and masked, at a cost of L^2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Size
from lm_research.config import key
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.common import (
    EncoderDecoderConfig,
    ParamMapping,
    given,
    tensor,
)
from lm_research.models.families.mt5 import MT5
from lm_research.models.families.t5 import T5, fields_of

_NAMES = {"local": "LocalSelfAttention", "transient-global": "TransientGlobalSelfAttention"}


@dataclasses.dataclass(frozen=True)
class LongT5Config(EncoderDecoderConfig):
    """Model section of LongT5."""

    local_radius: int = key(127, "Positions on each side that the encoder attends to.", low=1, high=2**20)
    global_block_size: int = key(
        0, "Length of the blocks whose sums the encoder attends to; 0 for none.", low=0, high=2**20
    )


class LongT5(T5):
    """T5 v1.1 for long sources, whose encoder attends to windows and to sums of blocks (Guo et al. 2021)."""

    # Guo et al. 2021, section 4.1: the shapes of T5 v1.1. These are the released models.
    sizes = {f"local_{name}": MT5.sizes[name] for name in ("base", "large")} | {
        f"tglobal_{name}": {**MT5.sizes[name], "global_block_size": 16} for name in ("base", "large", "xl")
    }
    model_types = {"longt5": "LongT5"}
    classes = {"ForConditionalGeneration": "seq2seq_lm", "EncoderModel": "none", "Model": "none"}
    encoder_classes = ("EncoderModel",)
    other_keys = T5.other_keys | dict.fromkeys(("local_radius", "global_block_size"), Size)
    required = {"encoder_attention_type": tuple(_NAMES)}

    @override
    def architecture(self, config: Any, vocab_size: int) -> Architecture:
        arch = super().architecture(config, vocab_size)
        return _with_windows(arch, config.local_radius, config.global_block_size)

    @override
    def run_fields(self, config: Any) -> dict[str, Any]:
        return fields_of("v1.1", config)

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        arch = super().from_hf(hf, names)
        has_sums = given(hf, "encoder_attention_type", "local") == "transient-global"
        size = given(hf, "global_block_size", 16) if has_sums else 0
        return _with_windows(arch, given(hf, "local_radius", 127), size)

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        spec = (arch.encoder or arch).layers[0]
        kind = "transient-global" if spec.block_sums else "local"
        own = {"local_radius": spec.window // 2, "encoder_attention_type": kind}
        own |= {"global_block_size": spec.block_sums} if spec.block_sums else {}
        return super().to_hf(arch) | own

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        name = _NAMES["transient-global" if (arch.encoder or arch).has_block_sums else "local"]

        def renamed(mapping: ParamMapping) -> ParamMapping:
            if not mapping.path.startswith("encoder/"):
                return mapping
            return dataclasses.replace(mapping, names=tuple(n.replace("SelfAttention", name) for n in mapping.names))

        first, layer = (f"@encoder.block.{block}.layer.0.{name}" for block in ("0", "{}"))
        return (
            *map(renamed, super().weights(arch, head)),
            *tensor("encoder/block_relative_bias", f"{first}.global_relative_attention_bias.weight"),
            *tensor("encoder/layers/attention/block_norm/scale", f"{layer}.global_input_layer_norm.weight"),
        )


def _with_windows(arch: Architecture, radius: int, block_sums: int) -> Architecture:
    """The model with encoder layers that attend to `radius` positions on each side, and to sums of blocks of this length."""
    fields: dict[str, Any] = dict(attention="window", window=2 * radius, block_sums=block_sums)
    return arch.replace(encoder=arch.source.with_layers(**fields))


FAMILIES.register("longt5", LongT5Config)(LongT5())
