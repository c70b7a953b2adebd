"""Refuses weights that were stored in fewer bits with scales beside them: read as they stand they would be other numbers.

Names of methods and tensors: https://huggingface.co/docs/transformers/quantization/overview, and what each of them saves.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lm_research.errors import PretrainedError

# Key of config.json -> whose it is where it does not name a method.
KEYS = {
    "quantization_config": "a method that quantization_config does not name",
    "compression_config": "compressed-tensors",
    "quantization": "MLX",
}
# Method -> ends of names of tensors that all occur in its files. The first that fits counts.
METHODS = {
    "bitsandbytes (4 bit)": (".absmax", ".quant_map"),
    "bitsandbytes (8 bit)": (".SCB",),
    "compressed-tensors": (".weight_packed",),
    "GPTQ": (".qweight", ".g_idx"),
    "AWQ": (".qweight", ".qzeros"),
    "packed integers (qweight)": (".qweight",),
    "AQLM": (".codebooks",),
    "HQQ": (".W_q",),
    "quanto": ("._data",),
    "MXFP4": ("_blocks", "_scales"),
    "FP8 in blocks (weight_scale_inv)": (".weight_scale_inv",),
}


def check_config(path: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Raises a PretrainedError that names the method if config.json says that the weights are quantized."""
    key = next((key for key in KEYS if config.get(key)), None)
    if key is None:
        return
    known = config[key] if isinstance(config[key], dict) else {}
    bits = "4 bit" if known.get("load_in_4bit") else "8 bit" if known.get("load_in_8bit") else ""
    method = known.get("quant_method") or ("bitsandbytes" if bits else KEYS[key])
    more = bits or known.get("format") or (f"{known['bits']} bit" if known.get("bits") else "")
    raise _refusal(path, f"{method} ({more})" if more else str(method))


def check_tensors(path: pathlib.Path, tensors: Mapping[str, np.dtype]) -> None:
    """Raises a PretrainedError that names the method if tensors, by name, are those of quantized weights.

    A float8 tensor is refused with or without scales: nobody computes with weights that have 3 bits after the point and no scale.
    """
    for method, ends in METHODS.items():
        found = [next((name for name in tensors if name.endswith(end)), None) for end in ends]
        if all(found):
            raise _refusal(path, f"{method}, by tensor {found[0]!r}")
    for name, dtype in tensors.items():
        small = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize == 1
        if small or (name.endswith("weight") and dtype.kind in "iu"):
            scaled = f"{name}_scale" in tensors
            raise _refusal(path, f"{dtype.name} {'with' if scaled else 'without'} scales, by tensor {name!r}")


def _refusal(path: pathlib.Path, method: str) -> PretrainedError:
    return PretrainedError(
        f"{path}: the weights are quantized: {method}. Such files are not supported. Take the model that they were made from, or undo it "
        "with transformers: load the model there, call model.dequantize() and model.save_pretrained(DIR), and give DIR."
    )
