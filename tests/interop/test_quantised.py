"""Weights in fewer bits whose method is not supported, or not declared, are refused by its name at every entry point.

What each method saves: https://huggingface.co/docs/transformers/quantization/overview and the source of its quantizer there.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lm_research
from helpers import golden_models
from lm_research import convert
from lm_research.config import ModelConfig
from lm_research.errors import PretrainedError
from lm_research.interop.tensor_files import open_tensors, write_tensors
from lm_research.run.init_checkpoint import InitCheckpoint

E4M3, I8, U8, I32, F32 = ml_dtypes.float8_e4m3fn, np.int8, np.uint8, np.int32, np.float32
UP = "model.layers.0.mlp.up_proj"
PEFT = pathlib.Path(__file__).parent / "peft_goldens" / "gpt2"

CONFIGS: dict[str, dict[str, Any]] = {
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    r"compressed-tensors \(float-quantized\)": {"quant_method": "compressed-tensors", "format": "float-quantized"},
    r"bitsandbytes \(4 bit\)": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "eetq": {"quant_method": "eetq", "weights": "int8"},
    "mxfp4": {"quant_method": "mxfp4"},
    "quanto": {"quant_method": "quanto", "weights": "int8"},
    "hqq": {"quant_method": "hqq"},
    "torchao": {"quant_method": "torchao"},
    "does not name": {"something": 1},
}
# Method -> the tensors in place of one matrix.
TENSORS: dict[str, dict[str, Any]] = {
    "float8_e4m3fn with scales": {f"{UP}.weight": E4M3, f"{UP}.weight_scale": F32},
    "float8_e4m3fn without scales": {f"{UP}.weight": E4M3},
    r"FP8 in blocks \(weight_scale_inv\)": {f"{UP}.weight": E4M3, f"{UP}.weight_scale_inv": F32},
    "int8 with scales": {f"{UP}.weight": I8, f"{UP}.weight_scale": F32},
    "compressed-tensors": {f"{UP}.weight_packed": I32, f"{UP}.weight_scale": F32, f"{UP}.weight_shape": np.int64},
    "GPTQ": {f"{UP}.qweight": I32, f"{UP}.qzeros": I32, f"{UP}.scales": np.float16, f"{UP}.g_idx": I32},
    "AWQ": {f"{UP}.qweight": I32, f"{UP}.qzeros": I32, f"{UP}.scales": np.float16},
    r"bitsandbytes \(8 bit\)": {f"{UP}.weight": I8, f"{UP}.SCB": F32, f"{UP}.weight_format": U8},
    r"bitsandbytes \(4 bit\)": {
        f"{UP}.weight": U8,
        f"{UP}.weight.absmax": U8,
        f"{UP}.weight.quant_map": F32,
        f"{UP}.weight.quant_state.bitsandbytes__nf4": U8,
    },
    "HQQ": {f"{UP}.W_q": U8, f"{UP}.scale": F32, f"{UP}.zero": F32},
    "quanto": {f"{UP}.weight._data": I8, f"{UP}.weight._scale": F32},
    "uint8 without scales": {f"{UP}.weight": U8},
}


def write(directory: pathlib.Path, config: dict[str, Any], tensors: dict[str, Any]) -> pathlib.Path:
    """A Llama with `tensors` in place of one matrix and `config` as quantization_config."""
    golden = golden_models.load_golden(golden_models.FOLDER / "llama_causal.npz")
    golden_models.write_checkpoint(directory, golden)
    whole = json.loads(golden.config) | ({"quantization_config": config} if config else {})
    (directory / "config.json").write_text(json.dumps(whole))
    if tensors:
        source = open_tensors(directory)
        values = {name: source.read(name) for name in source.names}
        values.pop(f"{UP}.weight")
        values |= {name: np.ones((2, 2), dtype) for name, dtype in tensors.items()}
        write_tensors(directory, [(n, v.shape, v.dtype, lambda v=v: v) for n, v in values.items()])
    return directory


@pytest.mark.parametrize("name", CONFIGS)
def test_quantization_declared_in_config_json(name: str, tmp_path: pathlib.Path) -> None:
    directory = write(tmp_path / "llama", CONFIGS[name], {})
    with pytest.raises(
        PretrainedError, match=rf"config.json: the weights are quantized: .*{name}.*model.dequantize\(\)"
    ):
        lm_research.from_pretrained(directory)


@pytest.mark.parametrize("name", TENSORS)
def test_quantization_recognized_by_tensors(name: str, tmp_path: pathlib.Path) -> None:
    directory = write(tmp_path / "llama", {}, TENSORS[name])
    with pytest.raises(PretrainedError, match=f"llama: the weights are quantized: {name}, by tensor '{UP}"):
        lm_research.from_pretrained(directory)


def test_every_entry_point(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    directory = write(tmp_path / "llama", {}, TENSORS["float8_e4m3fn with scales"])
    with pytest.raises(PretrainedError, match="quantized"):
        InitCheckpoint(directory, ModelConfig(), "causal_lm")
    assert convert.main(["--source", str(directory), "--output", str(tmp_path / "out"), "--to", "hf"]) == 2
    assert "quantized" in capsys.readouterr().err and not (tmp_path / "out").exists()
    base = pathlib.Path(shutil.copytree(PEFT / "base", tmp_path / "base"))
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": {"quant_method": "hqq"}}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(PretrainedError, match="quantized: hqq"):
        lm_research.from_pretrained(base, adapter=PEFT / "adapter")
    adapter = pathlib.Path(shutil.copytree(PEFT / "adapter", tmp_path / "adapter"))
    source = open_tensors(PEFT / "base")
    assert source.names  # the base itself is read
    path = adapter / "adapter_model.safetensors"
    tensors = {"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": np.ones((4, 16), E4M3)}
    (written,) = write_tensors(tmp_path / "x", [(n, v.shape, v.dtype, lambda v=v: v) for n, v in tensors.items()])
    written.replace(path)
    with pytest.raises(PretrainedError, match="float8_e4m3fn without scales"):
        lm_research.from_pretrained(PEFT / "base", adapter=adapter)


def test_an_empty_key_and_scales_of_a_cache_are_not_quantization(tmp_path: pathlib.Path) -> None:
    directory = write(tmp_path / "llama", {}, {f"{UP}.weight": F32, "model.layers.0.self_attn.k_scale": F32})
    config = json.loads((directory / "config.json").read_text()) | {"quantization_config": None}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(PretrainedError, match="has shape"):  # the only error here is the matrix of ones [2, 2]
        lm_research.from_pretrained(directory)
