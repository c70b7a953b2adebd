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
)
from lm_research.models.families.mt5 import MT5
from lm_research.models.families.t5 import T5, fields_of

_KINDS = ("local",)


@dataclasses.dataclass(frozen=True)
class LongT5Config(EncoderDecoderConfig):
    """Model section of LongT5."""

    local_radius: int = key(127, "Positions on each side that the encoder attends to.", low=1, high=2**20)


class LongT5(T5):
    """T5 v1.1 for long sources, whose encoder attends to windows (Guo et al. 2021)."""

    # Guo et al. 2021, section 4.1: the shapes of T5 v1.1.
    sizes = {f"local_{name}": MT5.sizes[name] for name in ("base", "large")}
    model_types = {"longt5": "LongT5"}
    classes = {"ForConditionalGeneration": "seq2seq_lm", "EncoderModel": "none", "Model": "none"}
    encoder_classes = ("EncoderModel",)
    other_keys = T5.other_keys | dict.fromkeys(("local_radius", "global_block_size"), Size)
    required = {"encoder_attention_type": _KINDS}

    @override
    def architecture(self, config: Any, vocab_size: int) -> Architecture:
        return _with_windows(super().architecture(config, vocab_size), config.local_radius)

    @override
    def run_fields(self, config: Any) -> dict[str, Any]:
        return fields_of("v1.1", config)

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        return _with_windows(super().from_hf(hf, names), given(hf, "local_radius", 127))

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        spec = (arch.encoder or arch).layers[0]
        return super().to_hf(arch) | {"local_radius": spec.window // 2, "encoder_attention_type": "local"}

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        name = "LocalSelfAttention"

        def renamed(mapping: ParamMapping) -> ParamMapping:
            if not mapping.path.startswith("encoder/"):
                return mapping
            return dataclasses.replace(mapping, names=tuple(n.replace("SelfAttention", name) for n in mapping.names))

        return tuple(map(renamed, super().weights(arch, head)))


def _with_windows(arch: Architecture, radius: int) -> Architecture:
    """The model with encoder layers that have windows of `radius` positions on each side."""
    return arch.replace(encoder=arch.source.with_layers(attention="window", window=2 * radius))


FAMILIES.register("longt5", LongT5Config)(LongT5())
