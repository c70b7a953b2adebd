"""Settings of the host process: memory allocation, and threads for simulated devices."""

from __future__ import annotations

import ctypes
import functools
import os
import re

import jax

# glibc's mallopt options (malloc.h) and what they are set to: one arena, no separate mapping for big blocks, nothing
# given back, 64 MiB at a time from the system.
_MALLOPT = {
    "M_ARENA_MAX": (-8, 1),
    "M_MMAP_MAX": (-4, 0),
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),
    "M_TOP_PAD": (-2, 64 << 20),
}


@functools.cache  # once a process: later, other threads are using the allocator
def keep_freed_memory() -> None:
    """Make glibc keep the large buffers that a step frees for the next step, instead of returning them to the kernel.

    On a CPU, XLA allocates the buffers of every step anew, and each returned page costs a fault: copying 64 MiB takes 25 ms with
    faults and 8 ms without. This has an effect only before JAX's first use of a device, and only if the C library has mallopt.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    for option, value in _MALLOPT.values():
        mallopt(option, value)


# XLA runs up to this many programs at once on a CPU; each occupies one thread per device while it waits for the others.
_PROGRAMS_IN_FLIGHT = 34


def give_simulated_devices_threads() -> None:
    """Give a CPU that simulates several devices (XLA_FLAGS or jax_num_cpu_devices) enough threads for all programs in flight.

    By default XLA makes one thread per device. The collectives of two concurrent programs can then block each other's threads, and the
    process hangs until XLA ends it. This has an effect only before JAX's first use of a device.
    """
    flag = re.search(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    devices = max(int(flag[1]) if flag else 1, jax.config.jax_num_cpu_devices)  # type: ignore[attr-defined, unused-ignore]  # untyped before jax 0.11
    if devices > 1:
        os.environ.setdefault("PJRT_NPROC", str(devices * _PROGRAMS_IN_FLIGHT))
