"""The compute type that `model.dtype=auto` means: bfloat16 where the devices multiply it faster than float32."""

from __future__ import annotations

import pathlib

import jax

from lm_research.config import Config, replace
from lm_research.parallel.hardware import platform

FAST_CPU_JAX = (0, 12)  # the first version whose products on CPUs use bfloat16 units (layers.multiplies_bfloat16)


def auto_dtype(name: str = "") -> str:
    """Choose "bfloat16" or "float32" for a platform, the current one by default.

    bfloat16 on TPUs, GPUs, and CPUs with AMX from jax 0.12 on.
    """
    name = name or platform()
    if name != "cpu":
        return "bfloat16"
    return "bfloat16" if jax.__version_info__ >= FAST_CPU_JAX and "amx_bf16" in processor_flags() else "float32"


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
    return replace(config, model={"dtype": auto_dtype(name)}) if config.model.dtype == "auto" else config
