"""Detection of quantized weights, which are rejected: without their scales they would be read as different numbers.

Methods: https://huggingface.co/docs/transformers/quantization/overview. Names of tensors: the files that each method writes.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lm_research.errors import PretrainedError

# Key of config.json -> method to report if the key does not name one.
KEYS = {
    "quantization_config": "a method that quantization_config does not name",
    "compression_config": "compressed-tensors",
    "quantization": "MLX",
}
# Method -> suffixes of names of tensors, all of which occur in its files. The first match is reported.
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
    """Raise a PretrainedError that names the method if the weights are quantized according to config.json."""
    key = next((key for key in KEYS if config.get(key)), None)
    if key is None:
        return
    settings = config[key] if isinstance(config[key], dict) else {}
    bits = "4 bit" if settings.get("load_in_4bit") else "8 bit" if settings.get("load_in_8bit") else ""
    method = settings.get("quant_method") or ("bitsandbytes" if bits else KEYS[key])
    more = bits or settings.get("format") or (f"{settings['bits']} bit" if settings.get("bits") else "")
    raise _refusal(path, f"{method} ({more})" if more else str(method))


def check_tensors(path: pathlib.Path, tensors: Mapping[str, np.dtype]) -> None:
    """Raise a PretrainedError that names the method if the names or types of tensors are those of quantized weights.

    float8 tensors are rejected with or without scales, because weights with at most 3 mantissa bits are not used without scales.
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
        f"{path}: the weights are quantized: {method}. Such files are not supported. Use the original model, or dequantize this one with "
        "transformers: load it there, call model.dequantize() and model.save_pretrained(DIR), and use DIR."
    )
