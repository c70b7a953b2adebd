"""Quantized weights: those of LLM.int8, GPTQ and AWQ are dequantized when they are read, and others are rejected.

Methods: https://huggingface.co/docs/transformers/quantization/overview. Names of tensors: the files that each method writes.
"""

from __future__ import annotations

import functools
import logging
import pathlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lm_research.common.documents import check_fields, short
from lm_research.errors import PretrainedError
from lm_research.interop import dequantize
from lm_research.interop.dequantize import Parts
from lm_research.interop.tensor_files import Files
from lm_research.interop.tensor_types import StoredTensor, damaged, transposed

LOG = logging.getLogger("lm_research")

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

INT8 = "bitsandbytes (8 bit)"
# Supported method -> last parts of names of its tensors. The first is in all files.
SUPPORTED = {
    INT8: ("SCB", "weight_format"),
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
}
_KINDS: dict[str, Any] = {
    "bits": int,
    "group_size": int,
    "desc_act": bool,
    "checkpoint_format": str,
    "format": str,
    "version": str,
    "backend": str,
}
_DESCRIBED = (
    INT8,
    "GPTQ",
    "AWQ",
    "packed integers (qweight)",
)  # keys of METHODS that quantization_config must describe
_FIX = "Download the model again."


def open_quantized(
    directory: pathlib.Path, config: dict[str, Any], source: Files, input_first: tuple[str, ...] = ()
) -> tuple[dict[str, Any], Files]:
    """Replace quantized matrices by tensors that are dequantized when they are read.

    Args:
      directory: of the model, for messages.
      config: config.json, whose quantization_config describes the tensors.
      source: the weight files.
      input_first: `Family.input_first`; quantized matrices are [out, in] in all families.

    Returns:
      config.json without quantization_config, and the weights with NAME.weight in place of NAME.qweight and the like; both
      unchanged if no weights are quantized.

    Raises:
      PretrainedError: the method is not supported, the tensors do not match config.json, or they are damaged.
    """
    path, method = directory / "config.json", _method(directory / "config.json", config)
    if method is None:
        check_tensors(directory, {name: source.dtype(name) for name in source.names})
        return config, source
    describe = _describe(path, method, config["quantization_config"], source)
    modules: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    for name, tensor in source.tensors.items():
        module, _, suffix = name.rpartition(".")
        if suffix in SUPPORTED[method]:
            modules[module][suffix] = tensor
    if not modules:
        raise PretrainedError(
            f"{path}: quantization_config is that of {method}, but the weight files have no tensor NAME.{SUPPORTED[method][0]}. {_FIX}"
        )
    tensors = dict(source.tensors)
    for module, parts in modules.items():
        for suffix in parts:
            del tensors[f"{module}.{suffix}"]
        if (whole := tensors.get(f"{module}.weight")) is not None:
            if method != INT8:
                raise damaged(whole.path, "the matrix is also stored as quantized values", f"{module}.weight")
            parts["weight"] = whole
        matrix = describe(module, parts)
        tensors[f"{module}.weight"] = transposed(matrix) if module.endswith(input_first) else matrix
    check_tensors(directory, {name: tensor.dtype for name, tensor in tensors.items()})
    LOG.info("%s: dequantized %d matrices of %s", directory, len(modules), method)
    return {key: value for key, value in config.items() if key != "quantization_config"}, Files(source.format, tensors)


def _method(path: pathlib.Path, config: Mapping[str, Any]) -> str | None:
    """Return the supported method of config.json, a key of SUPPORTED, or None if the weights are not quantized.

    Raises:
      PretrainedError: another method, which the message names.
    """
    key = next((key for key in KEYS if config.get(key)), None)
    if key is None:
        return None
    settings = config[key] if isinstance(config[key], dict) else {}
    bits = "4 bit" if settings.get("load_in_4bit") else "8 bit" if settings.get("load_in_8bit") else ""
    method = settings.get("quant_method") or ("bitsandbytes" if bits else KEYS[key])
    more = bits or settings.get("format") or (f"{settings['bits']} bit" if settings.get("bits") else "")
    whole = f"{method} ({more})" if more else str(method)
    found = next((one for one in SUPPORTED if one in (method, whole)), None)
    if found is None or key != "quantization_config":
        raise _refusal(path, whole)
    return found


def _describe(
    path: pathlib.Path, method: str, settings: Mapping[str, Any], source: Files
) -> Callable[[str, Parts], StoredTensor]:
    """Return the function that describes a dequantized matrix; raises a PretrainedError if settings are not supported."""
    check_fields(settings, _KINDS, f"{path}: quantization_config", error=PretrainedError, fix=_FIX)
    if method == INT8:
        others = [tensor.dtype for name, tensor in source.tensors.items() if not name.endswith(".SCB")]
        # A model in half precision may have some matrices in float32 (T5), which are not quantized.
        floating = (dtype for dtype in others if jnp.issubdtype(dtype, jnp.floating))
        dtype = min(floating, key=lambda dtype: dtype.itemsize, default=np.dtype(np.float16))
        return functools.partial(dequantize.int8, dtype=dtype)
    # The keys' names and defaults are those of transformers' GPTQConfig and AwqConfig.
    given = settings.get("checkpoint_format" if method == "gptq" else "version") or settings.get("format")
    layout = (given or {"gptq": "gptq", "awq": "gemm"}[method]).lower()
    if layout not in {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}[method] or settings.get("backend") == "llm-awq":
        raise _refusal(path, f"{method} in the layout {short(given or settings.get('backend'))}")
    bits = settings.get("bits", 4 if method == "awq" else None)
    if bits not in ((2, 3, 4, 8) if method == "gptq" else (4,)):
        raise _refusal(path, f"{method} with bits {short(bits)}")
    size = 128 if settings.get("group_size") is None else settings["group_size"]
    if size != -1 and size < 1:
        raise PretrainedError(
            f"{path}: quantization_config: group_size is {size}, but must be positive, or -1 for one group. {_FIX}"
        )
    if method == "awq":
        return functools.partial(dequantize.awq, group_size=size)
    return functools.partial(
        dequantize.gptq,
        bits=bits,
        group_size=size,
        stored_less_one=layout == "gptq",
        order=bool(settings.get("desc_act")),
    )


def check_tensors(path: pathlib.Path, tensors: Mapping[str, np.dtype]) -> None:
    """Raise a PretrainedError that names the method if the names or types of tensors are those of quantized weights.

    float8 tensors are rejected with or without scales, because weights with at most 3 mantissa bits are not used without scales.
    """
    for method, ends in METHODS.items():
        found = [next((name for name in tensors if name.endswith(end)), None) for end in ends]
        if all(found):
            raise _refusal(path, f"{method}, by tensor {found[0]!r}", undescribed=method in _DESCRIBED)
    for name, dtype in tensors.items():
        small = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize == 1
        if small or (name.endswith("weight") and dtype.kind in "iu"):
            scaled = f"{name}_scale" in tensors
            raise _refusal(path, f"{dtype.name} {'with' if scaled else 'without'} scales, by tensor {name!r}")


def _refusal(path: pathlib.Path, method: str, undescribed: bool = False) -> PretrainedError:
    if undescribed:
        return PretrainedError(
            f"{path}: the weights are quantized: {method}. The quantization_config of config.json does not describe them. {_FIX}"
        )
    return PretrainedError(
        f"{path}: the weights are quantized: {method}. Such files are not supported. Use the original model, or dequantize this one with "
        "transformers: load it there, call model.dequantize() and model.save_pretrained(DIR), and use DIR."
    )
