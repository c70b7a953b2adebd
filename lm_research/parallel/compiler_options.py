"""Options of the XLA compiler: those that each platform's steps are compiled with, and those of a run.

They are options of one compilation (`compiler_options` of `jax.jit`), so that a plan compiles the very program that a run executes, and
other programs of the process are compiled as before.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax

from lm_research.errors import ConfigError
from lm_research.parallel.hardware import CHIPS, device_kind, platform

DEFAULT = "default"  # the value that restores the compiler's own choice


class Option(NamedTuple):
    """An option of the compiler.

    Attributes:
      name: XLA's name.
      value: as text.
      axes: mesh axes; the option is set if one of them divides anything. Without axes it is always set.
      reason: why it is set.
      kinds: the chips that it is set on, by JAX's name (`hardware.device_kind`); all if empty.
    """

    name: str
    value: str
    axes: tuple[str, ...]
    reason: str
    kinds: tuple[str, ...] = ()


# libtpu 0.0.52 refuses fusions of collectives on other chips: "not supported/recommended on platforms other than TPU v5e".
_V5E = (CHIPS["v5e"].kind,)
_SHARDING, _ALL = ("fsdp", "expert", "context", "tensor"), ("data", "fsdp", "expert", "context", "tensor")

# Platform -> options. GPUs use the compiler's defaults. libtpu 0.0.52 fuses gathers by default, with the same program; the
# options state it for other versions.
OPTIONS: dict[str, tuple[Option, ...]] = {
    "cpu": (
        Option(
            "xla_backend_optimization_level",
            "1",
            (),
            "Compilation takes a third less time than at LLVM's level 3, and the steps of BERT and MiniLM are no slower.",
        ),
    ),
    "tpu": (
        Option(
            "xla_jf_spmd_threshold_for_windowed_einsum_mib",
            "1000000",
            _SHARDING,
            "A windowed einsum cuts a product into one piece per shard. With shards of 48 or 64 columns each piece is padded to 128, "
            "which took over a third of the step of 768 and 1,024 wide models on 16 chips.",
        ),
        Option(
            "xla_enable_async_all_gather",
            "true",
            _ALL,
            "Weights are gathered while the layer before computes.",
        ),
        Option(
            "xla_enable_async_reduce_scatter_fusion",
            "true",
            _SHARDING,
            "Each shard's sum of gradients is formed while the layer before computes.",
        ),
        Option(
            "xla_jf_crs_combiner_threshold_in_bytes",
            "1048576",
            _ALL,
            "Only small sums are combined: a combined sum waits for its last part and is never asynchronous.",
        ),
        Option(
            "xla_tpu_enable_async_collective_fusion_fuse_all_reduce",
            "true",
            _ALL,
            "The fusions below may contain sums of gradients, which are synchronous otherwise.",
            _V5E,
        ),
        Option(
            "xla_enable_async_all_reduce",
            "true",
            _ALL,
            "Gradients are summed while the layer before computes.",
        ),
        Option(
            "xla_tpu_enable_async_collective_fusion",
            "true",
            _ALL,
            "Collectives run inside fusions of products, which hide them.",
            _V5E,
        ),
        Option(
            "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
            "true",
            _ALL,
            "Those fusions may contain gathers of weights, the most frequent collective of fsdp.",
            _V5E,
        ),
        Option(
            "xla_tpu_enable_async_collective_fusion_multiple_steps",
            "true",
            _ALL,
            "A collective may extend over several products, where one is too short to hide it.",
            _V5E,
        ),
        Option(
            "xla_tpu_overlap_compute_collective_tc",
            "true",
            _ALL,
            "The tensor core computes while it drives a collective.",
        ),
        Option(
            "xla_tpu_enable_data_parallel_all_reduce_opt",
            "true",
            ("data",),
            "Sums of gradients over copies of the model leave the loop over layers and overlap with it.",
        ),
        Option(
            "xla_tpu_data_parallel_opt_different_sized_ops",
            "true",
            ("data",),
            "That holds for gradients of several sizes, as in every Transformer.",
        ),
    ),
}


def parse_flags(flags: Sequence[str]) -> dict[str, str]:
    """Parse NAME=VALUE; raise a ConfigError if one has another form or a name occurs twice."""
    found: dict[str, str] = {}
    for flag in flags:
        name, equals, value = (part.strip() for part in flag.partition("="))
        name = name.removeprefix("--")
        if not (name and equals and value):
            raise ConfigError(
                f"config.xla.flags: {flag!r} is not NAME=VALUE, as in xla_tpu_enable_async_collective_fusion=false."
            )
        if name in found:
            raise ConfigError(f"config.xla.flags sets {name} twice. Remove one.")
        found[name] = value
    return found


def compiler_options(
    flags: Sequence[str], mesh: Mapping[str, int] | None = None, device: str = "", kind: str = ""
) -> dict[str, str]:
    """Return the options of a run's steps: the platform's for this mesh, but those that XLA_FLAGS names, changed by `xla.flags`.

    Args:
      flags: NAME=VALUE; the value "default" removes an option.
      mesh: sizes of the mesh's axes; None is the current mesh (`jax.set_mesh`).
      device: "cpu", "gpu" or "tpu"; empty is `platform()`.
      kind: JAX's name of the chips; empty is `device_kind()`.
    """
    mesh = jax.sharding.get_abstract_mesh().shape if mesh is None else mesh
    chosen = (
        option
        for option in OPTIONS.get(device or platform(), ())
        if not re.search(rf"--{option.name}\b", os.environ.get("XLA_FLAGS", ""))  # which an option would override
        and (not option.axes or any(mesh.get(axis, 1) > 1 for axis in option.axes))
        and (not option.kinds or (kind or device_kind()) in option.kinds)
    )
    merged = {option.name: option.value for option in chosen} | parse_flags(flags)
    return {name: value for name, value in merged.items() if value != DEFAULT}


@contextlib.contextmanager
def refused_options(flags: Sequence[str]) -> Iterator[None]:
    """Turn the compiler's refusal of an option of `xla.flags` into a ConfigError."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        named = next((name for name in parse_flags(flags) if name in text), None)
        if named is None:
            raise
        raise ConfigError(
            f"config.xla.flags: the compiler of this platform ({platform()}) refuses {named}: {text[:300]} Remove it, or correct it."
        ) from error
