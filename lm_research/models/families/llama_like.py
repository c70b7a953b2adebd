"""The base of families with Llama's layout (Touvron et al. 2023, arXiv:2302.13971).

Rotary positions, RMSNorm before each branch, a gated feed-forward layer, grouped-query attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Size
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.families import layer_kinds, rotary
from lm_research.models.families.base import Family, Packing
from lm_research.models.families.common import ConfigField, ParamMapping, write_keys
from lm_research.models.families.decoder_weights import decoder_weights
from lm_research.models.rotary import SHARE


class LlamaLike(Family):
    """The base of families with Llama's layout.

    A subclass has `attention_bias`, `mlp_bias`, `sliding_window` or `layer_types` if they are among its `other_keys`; traits of all its
    models override what these read. A subclass whose traits have causal=False is an encoder.

    Attributes:
      _defaults: values of missing keys that have no ConfigField.
      _span_prefix: prefix of names in its class ForQuestionAnswering.
    """

    traits = dict(
        causal=True, norm="pre", norm_kind="rms", positions="rotary", gated=True, pooling="last", pooler_activation=""
    )
    run_traits = dict(
        activation="silu", norm_epsilon=1e-6, qkv_bias=False, output_bias=False, mlp_bias=False, tied=False
    )
    classes = {
        "ForCausalLM": "causal_lm",
        "ForSequenceClassification": "classification",
        "ForTokenClassification": "token_classification",
        "ForQuestionAnswering": "span",
        "Model": "none",
    }
    config_fields: tuple[ConfigField, ...] = (
        ConfigField("vocab_size", "vocab_size", 32000),
        ConfigField("hidden_size", "hidden_size", 4096),
        ConfigField("num_layers", "num_hidden_layers", 32),
        ConfigField("num_heads", "num_attention_heads", 32),
        ConfigField("intermediate_size", "intermediate_size", 11008),
        ConfigField("activation", "hidden_act", "silu"),
        ConfigField("attention_dropout_rate", "attention_dropout", 0.0),
        ConfigField("max_length", "max_position_embeddings", 2048),
        ConfigField("norm_epsilon", "rms_norm_eps", 1e-6),
        ConfigField("init_std", "initializer_range", 0.02),
        ConfigField("tied", "tie_word_embeddings", False),
        ConfigField("pad_id", "pad_token_id", -1),
    )
    other_keys = {"num_key_value_heads": Size, "head_dim": Size, **rotary.KEYS}
    packed_positions: Packing = "uncached"
    base_prefix = "model."
    redundant = (r"rotary_emb\.inv_freq$",)

    _defaults: Mapping[str, Any] = {}
    _span_prefix = "transformer."

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        fields = self.read(hf)
        return from_flat(self._pattern(hf, fields), **fields | self.traits)

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().read(hf)
        fields["num_kv_heads"] = self._get(hf, "num_key_value_heads") or fields["num_heads"]
        fields["head_size"] = self._get(hf, "head_dim") or 0
        fields["qkv_bias"] = fields["output_bias"] = bool(self._get(hf, "attention_bias"))
        fields["mlp_bias"] = bool(self._get(hf, "mlp_bias"))
        return fields if hf.get("pad_token_id", 0) is not None else {**fields, "pad_id": -1}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        last = arch.layers[-1]
        hf = write_keys(arch, self.config_fields) | {
            "model_type": next(iter(self.model_types)),
            "num_key_value_heads": arch.kv_heads,
            "head_dim": arch.head_width,
            "attention_bias": last.output_bias,
            "mlp_bias": last.mlp_bias,
            **layer_kinds.write_kinds(arch),
        }
        if arch.pad_id < 0:
            hf["pad_token_id"] = None
        if self._window({}) and "sliding_window" not in hf:  # a missing key would be the default's window
            hf["sliding_window"] = None
        absent = {"attention_bias", "mlp_bias"} - self.other_keys.keys()
        return {name: value for name, value in hf.items() if name not in absent}

    @override
    def prefix(self, arch: Architecture, head: str, kind: str) -> str:
        return self._span_prefix if head == "span" else super().prefix(arch, head, kind)

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        return decoder_weights("qa_outputs" if head == "span" else "score", "decoder" if arch.causal else "encoder")

    def _get(self, hf: Mapping[str, Any], name: str) -> Any:
        """The value of a key that this family has: a missing one is the family's default, else None."""
        return hf.get(name, self._defaults.get(name)) if name in self.other_keys else None

    def _window(self, hf: Mapping[str, Any]) -> int:
        """The window of layers with sliding attention; 0 if there are none."""
        return self._get(hf, "sliding_window") or 0

    def _kinds(self, hf: Mapping[str, Any], depth: int, window: int) -> list[str]:
        """The kind of each layer in a file without layer_types."""
        return [layer_kinds.SLIDING if window else layer_kinds.FULL] * depth

    def _pattern(self, hf: Mapping[str, Any], fields: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """Fields in which the layers of the pattern differ, `fields` being those of the stack."""
        window = self._window(hf)
        kinds, by_kind = self._kinds(hf, fields["num_layers"], window), "layer_types" in self.other_keys
        kinds = layer_kinds.read_kinds(hf, kinds) if by_kind else kinds
        theta, fraction = self._defaults.get("rope_theta", 1e4), self._defaults.get(SHARE)
        rope = dict(max_length=fields["max_length"], theta=theta, fraction=fraction)
        return layer_kinds.read_pattern(hf, kinds, window, by_kind, **rope)
