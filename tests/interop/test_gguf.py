"""GGUF files: the format and its quantized types against the package gguf, and models against the same weights in safetensors."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import struct
from typing import Any

import numpy as np
import pytest

import lm_research
from helpers.golden_models import golden_path, golden_tensors, load_golden, write_checkpoint
from lm_research.errors import PretrainedError
from lm_research.interop import gguf_file
from lm_research.interop.gguf_file import DEQUANTIZE, read_gguf

GOLDENS = pathlib.Path(__file__).parent / "gguf_goldens"
NAMES = {  # of tensors in safetensors files -> in GGUF files, by llama.cpp's convert_hf_to_gguf.py
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q4_K", "Q6_K"])
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


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, value: Any) -> bytes:
    kind, content = (
        (8, text(value))
        if isinstance(value, str)
        else (6, struct.pack("<f", value))
        if isinstance(value, float)
        else (4, struct.pack("<I", value))
    )
    return text(key) + struct.pack("<I", kind) + content


def write(path: pathlib.Path, metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Write version 3 as the specification has it, all tensors in float32."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(entry(*pair) for pair in metadata.items())
    data = b""
    for name, value in tensors.items():
        shape = value.shape[::-1]
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += np.ascontiguousarray(value, np.float32).tobytes()
        data += bytes(-len(data) % 32)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(head + bytes(-len(head) % 32) + data)


def packed(golden: Any, path: pathlib.Path) -> None:
    """Write a golden model as llama.cpp converts it."""
    config, kind = json.loads(golden.config), golden.family
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    tensors = {}
    for name, value in golden_tensors(golden).items():
        front, _, end = name.rpartition(".")
        block = f"blk.{name.split('.')[2]}." if ".layers." in name else ""
        key = front.split(".", 3)[3] if block else front
        if kind == "llama" and (count := heads.get(key.removeprefix("self_attn."))):
            half = len(value) // count // 2  # element i and i + half of each head become neighbors
            order = [head * 2 * half + i + part * half for head in range(count) for i in range(half) for part in (0, 1)]
            value = value[order]
        tensors[f"{block}{NAMES[key]}.{end}"] = value
    rope = config["rope_parameters"]
    if rope["rope_type"] == "llama3":
        # transformers' formula: wavelengths above original / low are divided by the factor, those below original / high are kept.
        width = config["head_dim"]
        plain = rope["rope_theta"] ** (-np.arange(0, width, 2) / width)
        turns = 8192 * plain / (2 * np.pi)
        blend = np.clip((turns - 1.0) / (4.0 - 1.0), 0, 1)
        tensors["rope_freqs.weight"] = 1 / (blend + (1 - blend) / rope["factor"])
    metadata = {
        "general.architecture": kind,
        f"{kind}.block_count": config["num_hidden_layers"],
        f"{kind}.embedding_length": config["hidden_size"],
        f"{kind}.feed_forward_length": config["intermediate_size"],
        f"{kind}.attention.head_count": config["num_attention_heads"],
        f"{kind}.attention.head_count_kv": config["num_key_value_heads"],
        f"{kind}.context_length": config["max_position_embeddings"],
        f"{kind}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{kind}.attention.key_length": config.get("head_dim")
        or config["hidden_size"] // config["num_attention_heads"],
        f"{kind}.rope.freq_base": float(rope["rope_theta"]),
    }
    write(path, metadata, tensors)


@pytest.mark.parametrize("name", ["llama_causal", "llama_causal_tied", "qwen2_causal", "qwen3_causal_full"])
def test_a_model_equals_its_safetensors(name: str, tmp_path: pathlib.Path) -> None:
    golden = load_golden(golden_path(name))
    write_checkpoint(tmp_path / "theirs", golden)
    packed(golden, tmp_path / "packed" / "model.gguf")
    theirs = lm_research.from_pretrained(tmp_path / "theirs")
    inputs = {"input_ids": golden.inputs["input_ids"], "attention_mask": golden.inputs["attention_mask"]}
    expected = theirs(**inputs)["logits"]
    for path in (tmp_path / "packed", tmp_path / "packed" / "model.gguf"):
        lm = lm_research.from_pretrained(path)
        assert lm.report.lines() == []
        np.testing.assert_allclose(lm(**inputs)["logits"], expected, atol=1e-5)
    lm.save_pretrained(tmp_path / "again")
    again = lm_research.from_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(again(**inputs)["logits"], lm(**inputs)["logits"])


def test_llama_3s_divisors_become_its_scaling(tmp_path: pathlib.Path) -> None:
    golden = load_golden(golden_path("llama_causal"))
    config = json.loads(golden.config)
    config["head_dim"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    config["rope_parameters"] = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0}
    packed(dataclasses.replace(golden, config=json.dumps(config)), tmp_path / "a.gguf")
    found = lm_research.from_pretrained(tmp_path / "a.gguf").config.rope_parameters
    assert found.rope_type == "llama3" and found.rope_theta == 500000.0
    assert found.factor == pytest.approx(8.0, rel=1e-5)


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
        (BASIC | {"llama.expert_count": 8}, TABLE, "experts"),
        (BASIC | {"llama.block_count": "x"}, TABLE, "llama.block_count is 'x'"),
        (BASIC | {"llama.rope.scaling.type": "longrope"}, TABLE, "longrope"),
        (BASIC, {}, "no tensor token_embd.weight"),
        (BASIC, TABLE | {"blk.0.ssm.weight": np.ones((2, 2))}, "does not belong to a supported architecture"),
        (BASIC, TABLE | {"rope_freqs.weight": np.array([1.0, 3.0])}, "not Llama 3's scaling"),
        (BASIC, TABLE, "no tensor .model.norm"),
    ],
)
def test_models_that_are_not_supported_are_refused(
    metadata: dict[str, Any], tensors: dict[str, np.ndarray], message: str, tmp_path: pathlib.Path
) -> None:
    write(tmp_path / "model.gguf", metadata, tensors)
    with pytest.raises(PretrainedError, match=message):
        lm_research.from_pretrained(tmp_path)


def test_a_folder_with_several_files_asks_for_one(tmp_path: pathlib.Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        write(tmp_path / name, BASIC, TABLE)
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
