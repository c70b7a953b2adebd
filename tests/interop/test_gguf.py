"""GGUF files: the format and its quantized types against the package gguf, and models against the same weights in safetensors."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import lm_research
from helpers.gguf_files import write_gguf
from helpers.golden_models import golden_path, golden_tensors, load_golden, write_checkpoint
from lm_research.errors import PretrainedError
from lm_research.interop import gguf_file, huggingface
from lm_research.interop.gguf_file import DEQUANTIZE, read_gguf
from lm_research.pretrained import find_tokenizer

GOLDENS = pathlib.Path(__file__).parent / "gguf_goldens"


@pytest.mark.parametrize("name", [kind.name for kind in DEQUANTIZE.values()])
def test_quantized_types_match_the_package_gguf(name: str) -> None:
    with np.load(GOLDENS / "blocks.npz") as file:
        blocks, expected = file[f"{name}/blocks"], file[f"{name}/values"]
    (kind,) = (one for one in DEQUANTIZE.values() if one.name == name)
    assert blocks.shape[1] == kind.bytes and expected.shape[1] == kind.elements
    np.testing.assert_array_equal(kind.values(blocks), expected)


def test_a_file_of_the_package_gguf_is_read() -> None:
    metadata, tensors = read_gguf(GOLDENS / "small.gguf")
    assert metadata["general.architecture"] == "llama" and metadata["llama.block_count"] == 2
    assert metadata["tokenizer.ggml.tokens"] == ["<s>", "a", "é"] and metadata["numbers"] == [1, -2, 3]
    assert metadata["yes"] is True and metadata["llama.rope.freq_base"] == 500000.0
    np.testing.assert_array_equal(tensors["plain"].load(), np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(tensors["half"].load(), np.arange(8).reshape(4, 2))
    assert (tensors["half"].dtype, tensors["packed"].dtype) == (np.float16, np.float32)
    # Blocks of 32 have the scale max / 127, rounded to float16.
    np.testing.assert_allclose(tensors["packed"].load(), np.arange(128).reshape(2, 64), atol=0.6)


# Key of GGUF files -> its names in config.json, of which llama.cpp's conversion takes the first that is there.
KEYS = {
    "block_count": ("num_hidden_layers", "n_layer", "num_layers"),
    "embedding_length": ("hidden_size", "n_embd", "d_model"),
    "feed_forward_length": ("intermediate_size", "n_inner", "d_ff", "ffn_hidden_size"),
    "context_length": ("max_position_embeddings", "n_positions"),
    "attention.head_count": ("num_attention_heads", "n_head", "num_heads"),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("head_dim", "d_kv"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "layer_norm_epsilon"),
    "attention.sliding_window": ("sliding_window",),
    "attention.relative_buckets_count": ("relative_attention_num_buckets",),
    "attention.scale": ("attention_multiplier",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "logit_scale": ("logits_scaling",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_local_experts", "num_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "decoder_block_count": ("num_decoder_layers",),
    "decoder_start_token_id": ("decoder_start_token_id",),
    "rope.scaling.original_context_length": ("original_max_position_embeddings",),
    "use_parallel_residual": ("use_parallel_residual",),
}
# Models -> keys of config.json that GGUF files cannot represent, as the models that they are made of have them.
FITTED: dict[str, dict[str, Any]] = {
    "bert_model": {"hidden_act": "gelu"},
    "bloom_causal": {"n_inner": 96},
    "gemma2_causal": {"query_pre_attn_scalar": 256},
    "gemma3_causal": {
        "query_pre_attn_scalar": 256,
        "layer_types": None,
        "sliding_window_pattern": 6,
        "num_hidden_layers": 6,
    },
    "qwen2_moe_causal": {"num_hidden_layers": 1, "mlp_only_layers": [], "decoder_sparse_step": 1, "layer_types": None},
    "qwen3_moe_causal": {"num_hidden_layers": 1, "mlp_only_layers": []},
    "smollm3_causal": {
        "layer_types": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "sliding_window": None,
        "use_sliding_window": False,
    },
    "t5_generation": {"relative_attention_max_distance": 128},
    "t5_generation_gated_gelu": {"relative_attention_max_distance": 128},
    "umt5_generation": {"relative_attention_max_distance": 128},
}
# Fields of an architecture that files do not have.
UNKNOWN = dict(init_std=0.02, residual_init_std=0.0, max_length=0)
UNKNOWN |= dict.fromkeys(("dropout_rate", "attention_dropout_rate", "activation_dropout_rate"), 0.0)


def golden_model(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The config.json and the weights of a golden model, changed to what GGUF files can represent."""
    golden = load_golden(golden_path(name))
    config, tensors = json.loads(golden.config) | FITTED.get(name, {}), golden_tensors(golden)
    if name == "bert_model":  # files have no pooler
        tensors = {one: value for one, value in tensors.items() if not one.startswith("pooler.")}
    elif name == "gemma3_causal":  # a sixth layer is the first with full attention
        tensors |= {one.replace(".0.", ".5."): value for one, value in tensors.items() if ".layers.0." in one}
    elif config.get("num_hidden_layers") == 1:  # a layer with experts
        layer = ".1." if name.startswith("qwen2") else ".0."
        tensors = {
            re.sub(r"(layers)\.1\.", r"\1.0.", one): value
            for one, value in tensors.items()
            if ".layers." not in one or f".layers{layer}" in one
        }
    return config, tensors


def converted(
    name: str, config: dict[str, Any], tensors: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The metadata and tensors of a GGUF file, with layouts as llama.cpp's conversion/*.py has them, and the names of gguf's tables."""
    stored = json.loads((GOLDENS / "names.json").read_text())[name]
    kind, names = stored["architecture"], stored["names"]
    found = {key: [config[one] for one in theirs if config.get(one) is not None] for key, theirs in KEYS.items()}
    data: dict[str, Any] = {key: values[0] for key, values in found.items() if values}
    heads, kv_heads = data["attention.head_count"], data.get("attention.head_count_kv", data["attention.head_count"])
    rope = config.get("rope_parameters") or {}
    sides, rope = rope.get("sliding_attention"), rope.get("full_attention", rope)
    data |= {"rope.freq_base_swa": sides["rope_theta"]} if sides else {}
    data |= {"rope.freq_base": float(rope["rope_theta"])} if rope else {}
    if "partial_rotary_factor" in rope:
        width = data["embedding_length"] // heads
        data["rope.dimension_count"] = int(width * rope["partial_rotary_factor"])
    if rope.get("rope_type") == "linear":
        data |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    made: dict[str, np.ndarray] = {}
    stacks: dict[str, list[np.ndarray]] = {}
    for theirs, value in tensors.items():
        front, _, end = theirs.rpartition(".")
        pattern = re.sub(r"experts\.\d+\.", "experts.{}.", re.sub(r"\.\d+\.", ".{}.", front, count=1))
        ours = f"{names[pattern]}.{end}"
        ours = ours.replace("{}", next(iter(re.findall(r"\.(\d+)\.", theirs)), ""))
        if kind in ("llama", "granite", "smollm3") and re.search(r"\.[qk]_proj\.", theirs):
            count = heads if ".q_" in theirs else kv_heads
            value = value.reshape(count, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        if kind in ("falcon", "bloom", "gptneox") and "query_key_value" in theirs:
            groups = value.reshape(kv_heads, heads // kv_heads + 2, -1, *value.shape[1:])
            parts = (groups[:, :-2], groups[:, -2], groups[:, -1])
            value = np.concatenate([part.reshape(-1, *value.shape[1:]) for part in parts])
        if kind.startswith("gemma") and theirs.endswith("norm.weight"):
            value = value + 1
        if kind == "gpt2" and theirs.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            value = value.T
        if ".experts." in theirs:
            stacks.setdefault(ours, []).append(value)
        else:
            made[ours] = value
    made |= {ours: np.stack(values) for ours, values in stacks.items()}
    if rope.get("rope_type") == "longrope":
        made |= {f"rope_factors_{part}.weight": np.array(rope[f"{part}_factor"]) for part in ("short", "long")}
    if rope.get("rope_type") == "llama3":
        # transformers' formula: wavelengths above original / low are divided by the factor, those below original / high are kept.
        width = config["head_dim"]
        plain = rope["rope_theta"] ** (-np.arange(0, width, 2) / width)
        turns = 8192 * plain / (2 * np.pi)
        blend = np.clip((turns - 1.0) / (4.0 - 1.0), 0, 1)
        made["rope_freqs.weight"] = 1 / (blend + (1 - blend) / rope["factor"])
    data |= {"attention.causal": False, "pooling_type": 2} if "bert" in kind else {}
    ids = {"bos": "bos", "eos": "eos", "padding": "pad"}
    numbers = {f"tokenizer.ggml.{ours}_token_id": config.get(f"{theirs}_token_id") for ours, theirs in ids.items()}
    known = {key: value for key, value in numbers.items() if value is not None}
    return {"general.architecture": kind, **{f"{kind}.{key}": value for key, value in data.items()}, **known}, made


def write_both(name: str, folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Write a golden model as a directory and as a file."""
    config, tensors = golden_model(name)
    golden = dataclasses.replace(load_golden(golden_path(name)), config=json.dumps(config))
    write_checkpoint(folder / "theirs", golden)
    safetensors.numpy.save_file(tensors, folder / "theirs" / "model.safetensors")
    write_gguf(folder / "model.gguf", *converted(name, config, tensors))
    return folder / "theirs", folder / "model.gguf"


def alike(arch: Any) -> Any:
    """An architecture, in parts, without what files do not have."""
    known = {field.name for field in dataclasses.fields(arch)} & UNKNOWN.keys()
    parts = vars(arch.replace(head_size=arch.head_width, **{name: UNKNOWN[name] for name in known}))
    return {name: alike(value) if name == "encoder" and value else value for name, value in parts.items()}


@pytest.mark.parametrize("name", json.loads((GOLDENS / "names.json").read_text()))
def test_a_file_is_the_same_model_as_the_directory(name: str, tmp_path: pathlib.Path) -> None:
    """Goldens of the directory's outputs are in test_goldens.py."""
    theirs, ours = (huggingface.inspect(path) for path in write_both(name, tmp_path))
    assert alike(ours.definition.arch) == alike(theirs.definition.arch)
    assert set(ours.source.names) == set(theirs.source.names)
    for one in theirs.source.names:
        expected = theirs.source.read(one)
        assert (ours.source.shape(one), ours.source.dtype(one)) == (expected.shape, expected.dtype)
        rounding = 2.5e-7 if "gemma" in name and one.endswith("norm.weight") else 0  # of 1 + x - 1
        np.testing.assert_allclose(ours.source.read(one), expected, rtol=0, atol=rounding)


def test_an_encoder_has_the_pooling_of_its_file(tmp_path: pathlib.Path) -> None:
    """2 is the first token's state in llama.cpp's enum llama_pooling_type."""
    _, path = write_both("nomic_bert_model", tmp_path)
    lm = lm_research.from_pretrained(path)
    states = np.asarray(lm(input_ids=[[1, 2, 3]])["last_hidden_state"])
    np.testing.assert_allclose(lm.embed([[1, 2, 3]], normalize=False), states[:, 0], atol=1e-6)


def test_a_model_equals_its_safetensors(tmp_path: pathlib.Path) -> None:
    golden = load_golden(golden_path("llama_causal"))
    theirs, file = (lm_research.from_pretrained(path) for path in write_both("llama_causal", tmp_path))
    inputs = {"input_ids": golden.inputs["input_ids"], "attention_mask": golden.inputs["attention_mask"]}
    np.testing.assert_allclose(file(**inputs)["logits"], theirs(**inputs)["logits"], atol=1e-5)
    (tmp_path / "folder").mkdir()
    (tmp_path / "model.gguf").rename(tmp_path / "folder" / "model.gguf")
    assert (
        huggingface.inspect(tmp_path / "folder").config
        == huggingface.inspect(tmp_path / "folder" / "model.gguf").config
    )
    file.save_pretrained(tmp_path / "again")
    again = lm_research.from_pretrained(tmp_path / "again")
    assert again.definition.arch == file.definition.arch


def test_llama_3s_divisors_become_its_scaling(tmp_path: pathlib.Path) -> None:
    config, tensors = golden_model("llama_causal")
    config["head_dim"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    config["rope_parameters"] = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0}
    write_gguf(tmp_path / "a.gguf", *converted("llama_causal", config, tensors))
    found = huggingface.inspect(tmp_path / "a.gguf").config["rope_parameters"]
    assert found["rope_type"] == "llama3" and found["rope_theta"] == 500000.0
    assert found["factor"] == pytest.approx(8.0, rel=1e-5)


def test_the_tokenizer_is_that_of_the_file_or_of_its_folder(tmp_path: pathlib.Path) -> None:
    vocabulary = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": ["a", "b", "ab"],
        "token_type": [1, 1, 1],
        "merges": ["a b"],
    }
    metadata, tensors = converted("llama_causal", *golden_model("llama_causal"))
    keys = {f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()}
    write_gguf(tmp_path / "a.gguf", metadata | keys, tensors)
    lm = lm_research.from_pretrained(tmp_path / "a.gguf")
    assert lm.tokenizer.encode("abba") == [2, 1, 0]
    # The end of a turn ends a text too.
    write_gguf(
        tmp_path / "a.gguf",
        metadata | keys | {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.eot_token_id": 2},
        tensors,
    )
    assert huggingface.inspect(tmp_path / "a.gguf").config["eos_token_id"] == [1, 2]
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nab\n")
    assert find_tokenizer(huggingface.inspect(tmp_path / "a.gguf").tokenizer).encode("ab") == [5]


BASIC = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 8,
    "llama.attention.head_count": 2,
    "llama.context_length": 8,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
TABLE = {"token_embd.weight": np.ones((5, 8))}


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        (BASIC | {"general.architecture": "mamba"}, TABLE, "general.architecture is 'mamba'"),
        (BASIC | {"llama.attention.causal": False}, TABLE, "llama.attention.causal is False"),
        ({"general.architecture": "bert", "bert.attention.causal": True}, TABLE, "bert.attention.causal is True"),
        (BASIC | {"llama.expert_count": 8, "llama.expert_gating_func": 2}, TABLE, "expert_gating_func is 2"),
        (BASIC | {"split.count": 3}, TABLE, "split.count is 3"),
        (BASIC | {"llama.attention.sliding_window": 4}, TABLE, "sliding_window is 4"),
        (BASIC | {"llama.rope.scaling.yarn_log_multiplier": 0.1}, TABLE, "yarn_log_multiplier is 0.1"),
        (BASIC | {"llama.attention.head_count_kv": [1, 2]}, TABLE, "head_count_kv is \\[1, 2\\]"),
        (BASIC | {"llama.block_count": "x"}, TABLE, "llama.block_count is 'x'"),
        (BASIC | {"llama.rope.scaling.type": "longrope"}, TABLE, "longrope"),
        (BASIC | {"llama.rope.dimension_count": 2}, TABLE, "dimension_count is 2, but this architecture rotates whole"),
        (BASIC, {}, "no tensor token_embd.weight"),
        (BASIC, TABLE | {"blk.0.ssm.weight": np.ones((2, 2))}, "does not belong to a supported architecture"),
        (BASIC, TABLE | {"rope_freqs.weight": np.array([1.0, 3.0])}, "not Llama 3's scaling"),
        (BASIC, TABLE, "no tensor .model.norm"),
    ],
)
def test_models_that_are_not_supported_are_refused(
    metadata: dict[str, Any], tensors: dict[str, np.ndarray], message: str, tmp_path: pathlib.Path
) -> None:
    write_gguf(tmp_path / "model.gguf", metadata, tensors)
    with pytest.raises(PretrainedError, match=message):
        lm_research.from_pretrained(tmp_path)


def test_a_folder_with_several_files_asks_for_one(tmp_path: pathlib.Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        write_gguf(tmp_path / name, BASIC, TABLE)
    with pytest.raises(PretrainedError, match="2 GGUF files \\(a.gguf, b.gguf\\)"):
        lm_research.from_pretrained(tmp_path)


def test_damaged_files_are_refused(tmp_path: pathlib.Path) -> None:
    """Every cut, and every changed byte of the header, gives an error or a file that is read; never anything else."""
    content = (GOLDENS / "small.gguf").read_bytes()
    path = tmp_path / "a.gguf"
    for size in (0, 3, 10, 20, 60, 200, len(content) - 40):
        path.write_bytes(content[:size])
        with pytest.raises(PretrainedError):
            read_gguf(path)
    rng = np.random.default_rng(0)
    for place in range(0, 500, 3):
        path.write_bytes(content[:place] + bytes([rng.integers(256)]) + content[place + 1 :])
        try:
            for tensor in read_gguf(path).tensors.values():
                assert tensor.load().shape == tensor.shape
        except PretrainedError as error:
            assert "a.gguf" in str(error)


def test_other_types_are_refused_by_name(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "DEQUANTIZE", {})
    content = (GOLDENS / "small.gguf").read_bytes()
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(PretrainedError, match="'packed': its type is 8, but only F32, F16, BF16"):
        read_gguf(tmp_path / "a.gguf")
