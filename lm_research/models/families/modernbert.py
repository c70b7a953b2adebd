"""ModernBERT (Warner et al. 2024, arXiv:2412.13663): a pre-norm encoder with rotary positions, windows and gated layers.

Ettin's encoders (Weller et al. 2025, arXiv:2507.11412) and mmBERT (Marone et al. 2025, arXiv:2509.06888) are further sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

from typing_extensions import override

from lm_research.config import ModelConfig, key
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.families import layer_kinds, modernbert_format, rotary
from lm_research.models.families.base import FAMILIES, Family
from lm_research.models.families.common import ParamMapping, given, write_keys

NO_BIASES = dict.fromkeys(("norm_bias", "qkv_bias", "output_bias", "mlp_bias", "transform_bias"), False)


@dataclasses.dataclass(frozen=True)
class ModernBertConfig(ModelConfig):
    """Model section of ModernBERT and of Ettin's decoders."""

    local_attention: int = key(
        128,
        "Window of layers with local attention: half of it on each side, or, in decoders, on the left.",
        low=2,
        high=2**24,
    )
    global_attn_every_n_layers: int = key(
        3, "Every how many layers attention is global; the first is.", low=1, high=4096
    )
    global_rope_theta: float = key(160000.0, "Base of the rotary wavelengths of global layers.", low=1.0, high=1e12)
    local_rope_theta: float = key(10000.0, "Base of the rotary wavelengths of local layers.", low=1.0, high=1e12)


class ModernBert(Family):
    """A pre-norm encoder with rotary positions, windows and gated layers (Warner et al. 2024)."""

    # Warner et al. 2024, table 4; Marone et al. 2025, table 1 (vocabulary of 256,000).
    sizes: Mapping[str, Mapping[str, Any]] = {
        "base": dict(num_layers=22, hidden_size=768, num_heads=12, intermediate_size=1152),
        "large": dict(num_layers=28, hidden_size=1024, num_heads=16, intermediate_size=2624),
        **modernbert_format.ETTIN,
        "mmbert_small": dict(num_layers=22, hidden_size=384, num_heads=6, intermediate_size=1152),
        "mmbert_base": dict(num_layers=22, hidden_size=768, num_heads=12, intermediate_size=1152),
    }
    traits: dict[str, Any] = dict(
        norm="pre",
        positions="rotary",
        gated=True,
        embedding_norm=True,
        pooler_norm=True,
        token_pooler=True,
        init="truncated_normal",
    )
    run_traits: dict[str, Any] = NO_BIASES | dict.fromkeys(
        ("activation", "pooler_activation", "head_activation"), "gelu"
    )

    model_types = {"modernbert": "ModernBert"}
    classes = {
        "ForMaskedLM": "masked_lm",
        "ForSequenceClassification": "classification",
        "ForTokenClassification": "token_classification",
        "ForQuestionAnswering": "span",
        "ForMultipleChoice": "multiple_choice",
        "Model": "none",
    }
    config_fields, other_keys = modernbert_format.FIELDS, modernbert_format.OTHER_KEYS
    required: Mapping[str, Any] = {"sparse_pred_ignore_index": -100}

    base_prefix = "model."
    redundant = (r"rotary_emb\.\w*inv_freq$",)
    _window_share = 1  # a window is local_attention divided by this

    @override
    def run_fields(self, config: ModernBertConfig) -> dict[str, Any]:
        kinds = _kinds(config.num_layers, config.global_attn_every_n_layers)
        thetas = {layer_kinds.FULL: config.global_rope_theta, layer_kinds.SLIDING: config.local_rope_theta}
        rope = {kind: {"rotary_theta": theta} for kind, theta in thetas.items()}
        return self.run_traits | dict(
            pattern=self._pattern(kinds, rope, config.local_attention, config.norm_position == "post"),
            residual_init_std=_residual_std(config.init_std, config.num_layers),
            classifier_dropout_rate=config.dropout_rate,
        )

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        fields = self.read(hf)
        kinds = _kinds(fields["num_layers"], given(hf, "global_attn_every_n_layers", 3))
        kinds = layer_kinds.read_kinds(hf, kinds)
        by_kind = layer_kinds.rope_by_kind(hf, modernbert_format.THETAS, modernbert_format.THETAS)
        named = {**hf, "rope_parameters": by_kind, "rope_scaling": None}
        rope = {kind: rotary.read_rotary(named, kind, max_length=fields["max_length"]) for kind in set(kinds)}
        pattern = self._pattern(kinds, rope, given(hf, "local_attention", 128))
        means = hf.get("classifier_pooling") == "mean"
        fields |= dict(
            qkv_bias=fields["output_bias"],
            head_activation=fields["pooler_activation"],
            pooling="mean" if means else "first",
            choice_pooling="mean" if means else "first_real",
            residual_init_std=_residual_std(fields["init_std"], fields["num_layers"]),
        )
        return from_flat(pattern, **fields | self.traits)

    def _pattern(
        self, kinds: list[str], rope: Mapping[str, Mapping[str, Any]], local_attention: int, first_norm: bool = False
    ) -> list[dict[str, Any]]:
        """The pattern of layers of these kinds; the first has a norm before its attention only with `first_norm`."""
        window = {"attention": "window", "window": local_attention // self._window_share}
        windows = {layer_kinds.FULL: {}, layer_kinds.SLIDING: window}
        first, *others = ({**windows[kind], **rope[kind]} for kind in kinds)
        return layer_kinds.shortest([{**first, "attention_norm": first_norm}, *others])

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        kinds = [layer_kinds.SLIDING if spec.window else layer_kinds.FULL for spec in arch.layer_specs]
        specs = dict(zip(kinds, arch.layer_specs, strict=True))
        hf = write_keys(arch, self.config_fields) | {
            "layer_types": kinds,
            "rope_parameters": {kind: rotary.write_rotary(spec) for kind, spec in specs.items()},
            "classifier_pooling": "mean" if arch.pooling == "mean" else "cls",
        }
        if layer_kinds.SLIDING in specs:
            hf["local_attention"] = specs[layer_kinds.SLIDING].window * self._window_share
        return hf

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        attention = modernbert_format.fused_attention("encoder/layers/attention", "@layers.{}.attn.Wqkv")
        return (*attention, *modernbert_format.blocks_and_heads("encoder", "masked_lm", "head", head))


def _kinds(depth: int, every: int) -> list[str]:
    """The kind of each layer of a file without layer_types."""
    return [layer_kinds.SLIDING if number % every else layer_kinds.FULL for number in range(depth)]


def _residual_std(init_std: float, depth: int) -> float:
    """Weights of residual layers are scaled by 1/sqrt(number of residual layers), of which a block has two."""
    return init_std / (2 * depth) ** 0.5


FAMILIES.register("modernbert", ModernBertConfig)(ModernBert())
