"""Files with the names of transformers' modules give the same parameters as files with the names of its format.

What is renamed, joined and divided is in transformers 5.24's conversion_mapping.py ("mixtral", "qwen2_moe", "nomic_bert", "gte").
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable

import numpy as np
import pytest
import safetensors.numpy

import lm_research
from helpers import golden_models
from lm_research.errors import PretrainedError
from lm_research.trees import flatten

Tensors = dict[str, np.ndarray]


def fused(tensors: Tensors, gate: str, up: str, down: str) -> Tensors:
    """The experts of each layer in two tensors [E, 2F, D] and [E, D, F]."""
    found, experts = {}, dict[str, Tensors]()
    for name, value in tensors.items():
        match = re.fullmatch(r"(.*\.experts\.)(\d+)\.(\w+)\.weight", name)
        if match is None:
            found[name] = value
        else:
            experts.setdefault(match[1], {})[f"{match[2]} {match[3]}"] = value
    for module, parts in experts.items():
        numbers = sorted({int(key.split()[0]) for key in parts})
        pairs = [np.concatenate([parts[f"{number} {gate}"], parts[f"{number} {up}"]]) for number in numbers]
        found[f"{module}gate_up_proj"] = np.stack(pairs)
        found[f"{module}down_proj"] = np.stack([parts[f"{number} {down}"] for number in numbers])
    return found


def mixtral(tensors: Tensors) -> Tensors:
    return {name.replace(".block_sparse_moe.", ".mlp."): x for name, x in fused(tensors, "w1", "w3", "w2").items()}


def qwen(tensors: Tensors) -> Tensors:
    return fused(tensors, "gate_proj", "up_proj", "down_proj")


def divided(tensors: Tensors, names: dict[str, list[str]]) -> Tensors:
    """Each tensor whose name has one of these parts, as equal parts of its rows with the names in its place."""
    for old, new in names.items():
        pairs = [(name, value) for name, value in tensors.items() if old in name]
        for name, value in pairs:
            del tensors[name]
            parts = np.split(value, len(new))
            tensors |= {name.replace(old, one): part for one, part in zip(new, parts, strict=True)}
    return tensors


QKV = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]


def nomic(tensors: Tensors) -> Tensors:
    new = "layers embeddings.LayerNorm self_attn.o_proj up_proj gate_proj down_proj post_attention_layernorm"
    old = "encoder.layers emb_ln attn.out_proj fc11 fc12 fc2 norm1".split()
    names = {one: [other] for one, other in zip(old, new.split(), strict=True)}
    return divided(tensors, names | {"norm2": ["post_mlp_layernorm"], "attn.Wqkv": QKV})


def gte(tensors: Tensors) -> Tensors:
    new = "layers self_attn.o_proj post_attention_layernorm post_mlp_layernorm lm_head.layer_norm".split()
    names = dict(
        zip("encoder.layer attention.o_proj attn_ln mlp_ln lm_head.norm".split(), ([n] for n in new), strict=True)
    )
    return divided(tensors, names | {"attention.qkv_proj": QKV, "mlp.up_gate_proj": ["mlp.up_proj", "mlp.gate_proj"]})


@pytest.mark.parametrize(
    ("golden", "names"),
    [
        ("mixtral_causal", mixtral),
        ("qwen2_moe_causal", qwen),
        ("qwen3_moe_causal", qwen),
        ("nomic_bert_masked", nomic),
        ("gte_masked", gte),
    ],
)
def test_names_of_modules_are_read_and_those_of_files_are_written(
    golden: str, names: Callable[[Tensors], Tensors], tmp_path: pathlib.Path
) -> None:
    golden_models.write_checkpoint(tmp_path / "files", golden_models.load_golden(golden_models.golden_path(golden)))
    golden_models.write_checkpoint(tmp_path / "modules", golden_models.load_golden(golden_models.golden_path(golden)))
    path = tmp_path / "modules" / "model.safetensors"
    before = safetensors.numpy.load_file(path)
    after = names(dict(before))
    assert len(set(before) - set(after)) > 10
    safetensors.numpy.save_file({name: np.ascontiguousarray(x) for name, x in after.items()}, path, {"format": "pt"})
    wanted, found = (lm_research.from_pretrained(tmp_path / one) for one in ("files", "modules"))
    assert found.report.lines() == []
    wanted_params, params = flatten(wanted.params), flatten(found.params)
    assert wanted_params.keys() == params.keys()
    for name, value in wanted_params.items():
        np.testing.assert_array_equal(params[name], value, err_msg=name)
    found.save_pretrained(tmp_path / "out")
    assert sorted(safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")) == sorted(before)


def test_experts_of_another_number_are_refused(tmp_path: pathlib.Path) -> None:
    golden_models.write_checkpoint(tmp_path, golden_models.load_golden(golden_models.golden_path("mixtral_causal")))
    tensors = mixtral(safetensors.numpy.load_file(tmp_path / "model.safetensors"))
    tensors |= {name: x[:-1] for name, x in tensors.items() if name.endswith("experts.down_proj")}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(PretrainedError, match=r"no tensor 'model.layers.0.block_sparse_moe.experts.4.w2.weight'"):
        lm_research.from_pretrained(tmp_path)
