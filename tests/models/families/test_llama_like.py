"""Families with Llama's layout: kinds of layers in config.json, and models stored while mistral and qwen2 were variants of llama."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from helpers import tiny
from lm_research.config import resolve
from lm_research.errors import PretrainedError
from lm_research.interop import native_checkpoint
from lm_research.interop.huggingface import hf_config
from lm_research.models.definition import define
from lm_research.models.families import FAMILIES, define_model
from lm_research.models.heads import HeadSpec
from lm_research.models.limits import invalid_reason
from lm_research.pretrained import LanguageModel, from_pretrained

SHAPE = dict(hidden_size=16, num_layers=3, num_heads=2, intermediate_size=24, max_length=32)
FULL, SLIDING = "full_attention", "sliding_attention"


def qwen2(**changes: Any) -> dict[str, Any]:
    return dict(num_hidden_layers=5, use_sliding_window=True, sliding_window=4, max_window_layers=2) | changes


@pytest.mark.parametrize(
    ("kinds", "period"),
    [
        ([FULL] * 5, 1),
        ([SLIDING] * 5, 1),
        ([SLIDING, FULL] * 2 + [SLIDING], 2),
        ([FULL, SLIDING, SLIDING, FULL, SLIDING], 3),
        ([SLIDING, SLIDING, FULL, FULL, SLIDING], 4),
        ([FULL, FULL, FULL, FULL, SLIDING], 5),
    ],
)
def test_any_pattern_of_layer_types_is_read_and_written(kinds: list[str], period: int) -> None:
    family = FAMILIES["qwen2"]
    arch = family.from_hf(qwen2(layer_types=kinds), set())
    assert len(arch.layers) == period
    assert [(spec.attention, spec.window) for spec in arch.layer_specs] == [
        ("window", 4) if kind == SLIDING else ("full", 0) for kind in kinds
    ]
    assert family.from_hf(family.to_hf(arch), set()).layer_specs == arch.layer_specs


@pytest.mark.parametrize(("first", "windows"), [(0, 5), (2, 3), (5, 0), (9, 0)])
def test_the_last_layers_of_qwen2_have_the_window(first: int, windows: int) -> None:
    arch = FAMILIES["qwen2"].from_hf(qwen2(max_window_layers=first), set())
    assert [spec.window for spec in arch.layer_specs] == [0] * (5 - windows) + [4] * windows


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(layer_types=[FULL] * 4), "layer_types has 4 entries, but num_hidden_layers is 5"),
        (dict(layer_types=[SLIDING] * 5, use_sliding_window=False), "no sliding_window is in use"),
        (dict(layer_types=[SLIDING] * 5, sliding_window=None), "no sliding_window is in use"),
        (dict(layer_types=["chunked_attention"] * 5), "layer_types"),
    ],
)
def test_invalid_layer_types_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PretrainedError, match=words):
        FAMILIES["qwen2"].from_hf(qwen2(**changes), set())


@pytest.mark.parametrize(
    ("kind", "heads", "kv_heads", "width"),
    [
        ("llama", 32, 32, 11008),
        ("mistral", 32, 8, 14336),
        ("qwen2", 32, 32, 22016),
        ("seed_oss", 80, 8, 27648),
        ("helium", 20, 20, 7040),
    ],
)
def test_missing_keys_have_the_defaults_of_their_class(kind: str, heads: int, kv_heads: int, width: int) -> None:
    """Those of the classes' configurations in transformers 5.24; null key/value heads are as many as heads."""
    arch = FAMILIES[kind].from_hf({}, set())
    assert (arch.num_heads, arch.kv_heads, arch.intermediate_size) == (heads, kv_heads, width)
    assert FAMILIES[kind].from_hf({"num_key_value_heads": None}, set()).kv_heads == heads


@pytest.mark.parametrize(
    "name",
    "granite helium llama ministral mistral olmo2 olmo3 phi phi3 qwen2 qwen3 seed_oss smollm3 starcoder2".split(),
)
def test_a_key_that_is_null_has_its_default(name: str) -> None:
    """But for those where null has a meaning in transformers: no window, no padding, as many key/value heads as heads, heads of D / H."""
    family = FAMILIES[name]
    meaningful = {"sliding_window", "pad_token_id", "num_key_value_heads", "head_dim"}
    keys = {field.name for field in family.config_fields} | family.other_keys.keys()
    extra = {"use_sliding_window": True} if "use_sliding_window" in keys else {}
    assert family.from_hf(dict.fromkeys(keys - meaningful) | extra, set()) == family.from_hf(extra, set())


def test_heads_of_helium_are_together_as_wide_as_the_model() -> None:
    """HeliumAttention of transformers 5.24 has an output projection from hidden_size to hidden_size."""
    family = FAMILIES["helium"]
    arch = family.from_hf(dict(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=8), set())
    with pytest.raises(PretrainedError, match="requires num_heads x head_size=64"):
        family.to_hf(arch)


@pytest.mark.parametrize("variant", ["mistral", "qwen2"])
def test_a_variant_of_llama_is_its_family(variant: str, tmp_path: pathlib.Path) -> None:
    """A run of model.family=llama with a variant has the architecture and the files of the family of that name."""
    config = resolve({"model": {"family": "llama", "variant": variant, **SHAPE}, "data": {"max_length": 32}}).model
    definition = define_model(config, 64)
    assert definition.arch == define_model(FAMILIES.make(variant, **SHAPE), 64).arch
    assert hf_config(definition, "llama") == hf_config(definition, variant)
    LanguageModel(definition, tiny.random_params(definition), "llama", {}).save_pretrained(tmp_path)
    assert from_pretrained(tmp_path).family == variant


def test_a_model_stored_as_a_variant_of_llama_is_read(tmp_path: pathlib.Path) -> None:
    """As native directories had it: family llama, with a config.json of Mistral, here without a window."""
    written = FAMILIES["mistral"].to_hf(define_model(FAMILIES.make("llama", **SHAPE), 64).arch)
    config = written | {
        "model_type": "mistral",
        "sliding_window": None,
        "architectures": ["MistralForQuestionAnswering"],
    }
    definition = define(define_model(FAMILIES.make("llama", **SHAPE), 64).arch, HeadSpec("span"))
    params = tiny.random_params(definition)
    native_checkpoint.save(tmp_path / "native", definition, "llama", params, config)
    lm = from_pretrained(tmp_path / "native")
    lm.save_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config
    again, inputs = from_pretrained(tmp_path / "out"), dict(input_ids=np.arange(5, 11)[None])
    assert again.report.lines() == [] and again.family == "mistral"
    np.testing.assert_array_equal(again(**inputs)["start_logits"], lm(**inputs)["start_logits"])


# config.json as on the hub, without keys that describe training or files: with the spelling before transformers 5, and as 5.24's
# save_pretrained writes the same models.
LLAMA32 = dict(
    model_type="llama",
    architectures=["LlamaForCausalLM"],
    attention_bias=False,
    attention_dropout=0.0,
    bos_token_id=128000,
    eos_token_id=[128001, 128008, 128009],
    head_dim=64,
    hidden_act="silu",
    hidden_size=2048,
    initializer_range=0.02,
    intermediate_size=8192,
    max_position_embeddings=131072,
    mlp_bias=False,
    num_attention_heads=32,
    num_hidden_layers=16,
    num_key_value_heads=8,
    pretraining_tp=1,
    rms_norm_eps=1e-05,
    tie_word_embeddings=True,
    vocab_size=128256,
)
LLAMA3 = dict(factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=8192)
QWEN25 = dict(
    model_type="qwen2",
    architectures=["Qwen2ForCausalLM"],
    attention_dropout=0.0,
    bos_token_id=151643,
    eos_token_id=151645,
    hidden_act="silu",
    hidden_size=896,
    initializer_range=0.02,
    intermediate_size=4864,
    max_position_embeddings=32768,
    max_window_layers=21,
    num_attention_heads=14,
    num_hidden_layers=24,
    num_key_value_heads=2,
    rms_norm_eps=1e-06,
    tie_word_embeddings=True,
    vocab_size=151936,
)
MISTRAL3 = dict(
    model_type="mistral",
    architectures=["MistralForCausalLM"],
    attention_dropout=0.0,
    bos_token_id=1,
    eos_token_id=2,
    hidden_act="silu",
    hidden_size=4096,
    initializer_range=0.02,
    intermediate_size=14336,
    max_position_embeddings=32768,
    num_attention_heads=32,
    num_hidden_layers=32,
    num_key_value_heads=8,
    rms_norm_eps=1e-05,
    sliding_window=None,
    tie_word_embeddings=False,
    vocab_size=32768,
)


@pytest.mark.parametrize(
    ("config", "old", "new", "head"),
    [
        (
            LLAMA32,
            dict(rope_scaling={**LLAMA3, "rope_type": "llama3"}, rope_theta=500000.0, torch_dtype="bfloat16"),
            dict(rope_parameters={**LLAMA3, "rope_type": "llama3", "rope_theta": 500000.0}, dtype="bfloat16"),
            64,
        ),
        (
            QWEN25,
            dict(rope_theta=1000000.0, sliding_window=32768, use_sliding_window=False, torch_dtype="bfloat16"),
            dict(
                rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
                layer_types=[FULL] * 24,
                sliding_window=None,
                use_sliding_window=False,
                dtype="bfloat16",
            ),
            64,
        ),
        (
            MISTRAL3,
            dict(rope_theta=1000000.0, torch_dtype="bfloat16"),
            dict(rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, head_dim=128, dtype="bfloat16"),
            128,
        ),
    ],
    ids=["llama", "qwen2", "mistral"],
)
def test_files_of_the_hub_are_read_in_both_spellings(
    config: dict[str, Any], old: dict[str, Any], new: dict[str, Any], head: int
) -> None:
    family = FAMILIES[config["model_type"]]
    archs = [family.from_hf(config | more, set()) for more in (old, new)]
    assert define(archs[0], HeadSpec("causal_lm")).shapes == define(archs[1], HeadSpec("causal_lm")).shapes
    assert archs[0].layer_specs == archs[1].layer_specs and len(archs[0].layers) == 1
    spec = archs[0].layer_specs[0]
    assert (spec.rotary_theta, spec.head_size, spec.window) == (old["rope_theta"], head, 0)
    assert not invalid_reason(archs[0])
