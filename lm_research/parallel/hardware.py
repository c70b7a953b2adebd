"""Peak rates and memory of devices, for MFU (model FLOPs utilization, Chowdhery et al. 2022, appendix B) and for plans."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Data sheet of a chip. All rates are per second, in one direction, and of the whole chip.

    Attributes:
      kind: part of jax's device_kind that identifies the chip.
      flops: dense bfloat16 FLOP/s.
      hbm_bytes: memory that programs can use.
      hbm_bandwidth: bytes/s between memory and chip.
      link_bandwidth: bytes/s of one link to a neighbor (TPU torus), or of a GPU to the other GPUs of its machine.
      torus: number of dimensions of the torus that links form; 0 if all chips are connected alike (NVLink).
      wraps_at: multiple that the sides of a slice must be to close to rings; 0 without a torus.
      network_bandwidth: bytes/s over the data-center network, which connects slices or machines.
      clock: Hz of the matrix units; 0 for GPUs.
      devices: JAX devices that the chip has; each has an equal part of its rates and memory.
      described_as: libtpu's name of the chip's configuration, if it is not the default: JAX on a v4 joins the two cores of a chip.
      int8, fp8: FLOP/s of products of numbers of these types, if the chip multiplies them faster than bfloat16; otherwise 0.
    """

    kind: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    torus: int
    wraps_at: int
    network_bandwidth: float
    clock: float = 0.0
    devices: int = 1
    described_as: str = ""
    int8: float = 0.0
    fp8: float = 0.0

    @property
    def device(self) -> Chip:
        """The rates and memory of one JAX device."""
        names = ("flops", "int8", "fp8", "hbm_bytes", "hbm_bandwidth", "link_bandwidth", "network_bandwidth")
        parts = {name: getattr(self, name) / self.devices for name in names}
        return dataclasses.replace(self, **parts, devices=1)

    def product_flops(self, item: int) -> float:
        """FLOP/s of products of numbers of `item` bytes."""
        return max(self.flops, self.int8, self.fp8) if item == 1 else self.flops

    def closes(self, shape: Sequence[int], side: int) -> bool:
        """Whether the links along a side of a slice form a ring.

        The optical switches of a 3D torus join the opposite faces of cubes of 4 x 4 x 4, so they close rings only in slices of whole
        cubes. A 2D pod has rings along the sides that are as long as the pod's.
        """
        sides = shape if self.torus == 3 else (shape[side],)
        return bool(self.torus) and all(length % self.wraps_at == 0 for length in sides)


# TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, "System architecture". Their "bidirectional ICI bandwidth per
# chip" counts both directions of all links: v4 600, v5e 400, v5p 1200, v6e 800, tpu7x 1200 GB/s over 6, 4, 6, 4 and 6
# links. 3D slices are built of cubes of 4 x 4 x 4 whose sides close to rings; 2D ones close at 16 chips, the pod's side.
# Network: v5e 6.4 and v6e 25.6 Tb/s per pod of 256; v4 and v5p hosts of 4 chips with 200 Gb/s; tpu7x 100 Gb/s per chip.
# Memory of TPUs: what the compiler of libtpu 0.0.52 offers a program, from the message of one that is too large.
# GPUs (SXM boards): NVIDIA's data sheets "A100 80GB", "H100", "H200" and "DGX B200" (an eighth of the system); NVLink of 600,
# 900, 900 and 1800 GB/s counts both directions; network of the DGX: 200 Gb/s per A100, 400 Gb/s per later GPU. Their
# memory is what nvidia-smi reports: 81,920, 81,559, 143,771 and 183,359 MiB.
# TPUs have been checked against those pages, GPUs against secondary tables of the data sheets.
# 8 bits: v5e and v6e "Peak compute per chip (Int8)", tpu7x "(FP8)", which is that of bfloat16 for v5p and v6e; the rest from secondary
# tables, GPUs without sparsity.
# Kinds come before their prefixes: "TPU v5" is the device_kind of a v5p.
CHIPS = {
    "v6e": Chip("TPU v6 lite", 918e12, 31.24 * GIB, 1638e9, 100e9, 2, 16, 12.5e9, 1.75e9, int8=1836e12),
    "v5e": Chip("TPU v5 lite", 197e12, 15.75 * GIB, 819e9, 50e9, 2, 16, 3.125e9, 1.5e9, int8=393e12),
    "v5p": Chip("TPU v5", 459e12, 95.73 * GIB, 2765e9, 100e9, 3, 4, 6.25e9, 1.75e9, int8=918e12),
    "v4": Chip("TPU v4", 275e12, 30.75 * GIB, 1200e9, 50e9, 3, 4, 6.25e9, 1.05e9, 1, "megacore"),
    "tpu7x": Chip("TPU7x", 2307e12, 2 * 94.74 * GIB, 7380e9, 100e9, 3, 4, 12.5e9, 2.2e9, 2, fp8=4614e12),
    "b200": Chip("B200", 2250e12, 183_359 * 2.0**20, 8000e9, 900e9, 0, 0, 50e9, int8=4500e12, fp8=4500e12),
    "h200": Chip("H200", 989e12, 143_771 * 2.0**20, 4800e9, 450e9, 0, 0, 50e9, int8=1979e12, fp8=1979e12),
    "h100": Chip("H100", 989e12, 81_559 * 2.0**20, 3350e9, 450e9, 0, 0, 50e9, int8=1979e12, fp8=1979e12),
    "a100": Chip("A100", 312e12, 81_920 * 2.0**20, 2039e9, 300e9, 0, 0, 25e9, int8=624e12),
}
PEAK_FLOPS = {chip.kind: chip.device.flops for chip in CHIPS.values()}


def current_chip() -> Chip | None:
    """Return the chip of `device_kind`, or None if it is no chip of CHIPS."""
    return next((chip for chip in CHIPS.values() if chip.kind in device_kind()), None)


def peak_flops() -> tuple[float | None, str]:
    """Return the peak FLOP/s of all devices of the run together, and the source of the number.

    For a CPU it is the rate of the fastest of several float32 matrix products (2048 cubed); simulated devices share one CPU. For an
    unknown accelerator it is None.
    """
    device = jax.devices()[0]
    if device.platform == "cpu":
        return jax.process_count() * _measured_cpu_flops(), "float32 matrix product measured on this CPU"
    for name, flops in PEAK_FLOPS.items():
        if name in device.device_kind:
            return jax.device_count() * flops, f"dense bfloat16 peak of {jax.device_count()} x {device.device_kind}"
    return None, f"no peak known for {device.device_kind}"


def platform() -> str:
    """Return `cpu`, `gpu` or `tpu`: the platform of the current mesh (`jax.set_mesh`), or JAX's default without one.

    The devices of a mesh need not be present if a program is only compiled for them.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def device_kind() -> str:
    """Return JAX's name of the chips of the current mesh, or of the default devices without one, such as "TPU v5 lite"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


def memory_bytes() -> float:
    """Return the memory of a device in bytes. CPU devices divide the machine's memory."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / jax.local_device_count()
    return limit


def free_bytes() -> float:
    """Return the free memory of a device in bytes; all of its memory if the system does not report it."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        text = pathlib.Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:  # not Linux
        return memory_bytes()
    found = re.search(r"^MemAvailable: +(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 / jax.local_device_count() if found else memory_bytes()


def _measured_cpu_flops(size: int = 2048, min_runs: int = 4, max_runs: int = 24) -> float:
    """Time matrix products until three in a row improve by less than 2%, because other programs may use the CPU."""
    multiply = jax.jit(jnp.dot)
    with jax.default_device(jax.local_devices()[0]):
        x = jnp.ones((size, size), jnp.float32)
        multiply(x, x).block_until_ready()
        best, since = math.inf, 0
        for number in range(max_runs):
            start = time.perf_counter()
            multiply(x, x).block_until_ready()
            seconds = time.perf_counter() - start
            since = 0 if seconds < 0.98 * best else since + 1
            best = min(best, seconds)
            if number + 1 >= min_runs and since >= 3:
                break
    return 2.0 * size**3 / best
