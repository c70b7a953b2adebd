"""Keys that a config.json lacks or spells otherwise: the configuration classes of transformers 5.24 have the same defaults and names."""

from __future__ import annotations

from typing import Any

import pytest

from lm_research.models.families import FAMILIES

MT5 = dict(vocab_size=250112, num_layers=8, num_heads=6, intermediate_size=1024, gated=True, activation="gelu_tanh")


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("mixtral", {"rotary_theta": 1e6, "norm_epsilon": 1e-5, "num_experts": 8}),
        ("mt5", MT5),
        ("umt5", MT5),
        ("xlm_roberta", {"vocab_size": 30522, "pad_id": 1}),
    ],
)
def test_defaults(family: str, expected: dict[str, Any]) -> None:
    """MixtralConfig(), MT5Config(), UMT5Config() and XLMRobertaConfig()."""
    arch = FAMILIES[family].from_hf({}, set())
    fields = vars(arch.layers[0]) | vars(arch)
    assert {name: fields[name] for name in expected} == expected


def test_windows_of_qwen2_moe_without_their_number() -> None:
    """Qwen2MoeConfig(...).layer_types: every other one of the first 28 layers has a window."""
    hf = {"use_sliding_window": True, "sliding_window": 8, "num_hidden_layers": 3}
    assert [spec.window for spec in FAMILIES["qwen2_moe"].from_hf(hf, set()).layer_specs] == [8, 0, 8]


@pytest.mark.parametrize(("family", "more"), [("gpt2", {"max_position_embeddings": 30}), ("distilbert", {})])
def test_other_spellings(family: str, more: dict[str, int]) -> None:
    """`attribute_map` of GPT2Config and DistilBertConfig."""
    hf = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
    arch = FAMILIES[family].from_hf(hf | more, set())
    assert (arch.hidden_size, arch.num_layers, arch.num_heads) == (24, 3, 4)
    assert arch.max_length == more.get("max_position_embeddings", 512)
