"""What the devices can do at best, for MFU (model FLOPs utilisation, Chowdhery et al. 2022, appendix B)."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

# Dense bfloat16 peak of one chip in FLOP/s, from the makers' data sheets, by a part of jax's device_kind.
# Longer names first: "TPU v5" is what a v5p calls itself.
PEAK_FLOPS = {
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU7x": 2307e12,
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
}


def peak_flops() -> tuple[float | None, str]:
    """Peak FLOP/s of all devices of the run together, and where the number comes from.

    A CPU has no honest data sheet, so there the fastest of a few float32 matrix products (2048 cubed) stands for it;
    simulated devices share that one CPU. An unknown accelerator gives None.
    """
    device = jax.devices()[0]
    if device.platform == "cpu":
        return jax.process_count() * _measured_cpu_flops(), "float32 matrix product measured on this CPU"
    for name, flops in PEAK_FLOPS.items():
        if name in device.device_kind:
            return jax.device_count() * flops, f"dense bfloat16 peak of {jax.device_count()} x {device.device_kind}"
    return None, f"no peak known for {device.device_kind}"


def _measured_cpu_flops(size: int = 2048, repeats: int = 4) -> float:
    multiply = jax.jit(jnp.dot)
    with jax.default_device(jax.local_devices()[0]):
        x = jnp.ones((size, size), jnp.float32)
        multiply(x, x).block_until_ready()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            multiply(x, x).block_until_ready()
            times.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(times)
