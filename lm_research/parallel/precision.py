"""The compute type that `model.dtype=auto` means: bfloat16 where the devices multiply it faster than float32."""

from __future__ import annotations

import pathlib

import jax

from lm_research.config import Config, replace
from lm_research.parallel.hardware import platform

# Before this version, each pass of a loop on a CPU converts the bfloat16 of all layers to float32 and back.
LOOPING_JAX = (0, 12)


def auto_dtype(scan_layers: bool, name: str = "") -> str:
    """Choose "bfloat16" or "float32" for a platform, the current one by default.

    bfloat16 on TPUs, GPUs, and CPUs with AMX; of layers in a loop there, from jax 0.12 on.
    """
    if (name or platform()) != "cpu":
        return "bfloat16"
    faster = not scan_layers or jax.__version_info__ >= LOOPING_JAX
    return "bfloat16" if faster and "amx_bf16" in processor_flags() else "float32"


def processor_flags(file: str = "/proc/cpuinfo") -> frozenset[str]:
    """List what the processor can do, by Linux's names; empty on other systems."""
    try:
        text = pathlib.Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def with_dtype(config: Config, name: str = "") -> Config:
    """Replace model.dtype=auto by the type of a platform, the current one by default."""
    if config.model.dtype != "auto":
        return config
    return replace(config, model={"dtype": auto_dtype(config.model.scan_layers, name)})
