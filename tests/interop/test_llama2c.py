"""Weights of llama2.c against the same weights in safetensors; the layout is that of its export.py, legacy_export."""

from __future__ import annotations

import json
import pathlib
import struct
from typing import Any

import numpy as np
import pytest

import lm_research
from helpers.golden_models import golden_path, golden_tensors, load_golden, write_checkpoint
from lm_research.errors import PretrainedError

KINDS = (
    "input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj post_attention_layernorm mlp.gate_proj "
    "mlp.down_proj mlp.up_proj"
).split()
LENGTH = 16


def packed(golden: Any, tied: bool = True) -> bytes:
    """Write a golden model with tied embeddings or, as a separate table, twice the embeddings."""
    config, tensors = json.loads(golden.config), golden_tensors(golden)
    heads = {"self_attn.q_proj": config["num_attention_heads"], "self_attn.k_proj": config["num_key_value_heads"]}
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    vocab = config["vocab_size"]
    data = struct.pack("<7i", *(config[name] for name in names), vocab if tied else -vocab, LENGTH)
    data += tensors["model.embed_tokens.weight"].tobytes()
    for kind in KINDS:
        for layer in range(config["num_hidden_layers"]):
            value = tensors[f"model.layers.{layer}.{kind}.weight"]
            if kind in heads:  # element i and i + half of each head become neighbors
                half = len(value) // heads[kind] // 2
                value = value.reshape(heads[kind], 2, half, -1).swapaxes(1, 2).reshape(value.shape)
            data += np.ascontiguousarray(value).tobytes()
    data += tensors["model.norm.weight"].tobytes()
    data += bytes(4 * LENGTH * config["hidden_size"] // config["num_attention_heads"])  # the angles are not read
    return data if tied else data + (2 * tensors["model.embed_tokens.weight"]).tobytes()


@pytest.fixture(scope="module")
def golden() -> Any:
    return load_golden(golden_path("llama_causal_tied"))


def test_a_model_equals_its_safetensors(golden: Any, tmp_path: pathlib.Path) -> None:
    """llama2.c has no other epsilon than 1e-5 and no other base than 10,000, which the golden model therefore gets."""
    config = json.loads(golden.config)
    config |= {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    write_checkpoint(tmp_path / "theirs", golden)
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    ids = {"input_ids": np.asarray(golden.inputs["input_ids"])[:, :LENGTH]}
    expected = lm_research.from_pretrained(tmp_path / "theirs")(**ids)["logits"]
    for tied, factor in ((True, 1), (False, 2)):
        (tmp_path / "ours.bin").write_bytes(packed(golden, tied))
        lm = lm_research.from_pretrained(tmp_path / "ours.bin")
        assert lm.report.lines() == [] and lm.config.max_position_embeddings == LENGTH
        np.testing.assert_allclose(lm(**ids)["logits"], factor * expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-4], "its header means [0-9,]+ bytes, but it has"),
        (lambda data: data[:20], "does not begin with the header of a llama2.c file of version 0"),
        (lambda data: b"ak42" + data[4:], "does not begin with the header"),  # version 1 and later
        (lambda data: struct.pack("<7i", 64, 172, 5, 8, 3, 512, 512) + data[28:], "8 heads and 3 key and value heads"),
    ],
)
def test_other_files_are_refused(change: Any, message: str, golden: Any, tmp_path: pathlib.Path) -> None:
    (tmp_path / "ours.bin").write_bytes(change(packed(golden)))
    with pytest.raises(PretrainedError, match=message):
        lm_research.from_pretrained(tmp_path / "ours.bin")
