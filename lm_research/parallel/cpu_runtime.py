"""The host process: its memory, and its threads where it simulates devices."""

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
    """Tells glibc to keep the big buffers that a step frees for the next step, instead of returning them to the kernel.

    On a CPU XLA allocates a step's buffers anew each time, and each returned page costs a fault: copying 64 MiB
    took 25 ms with faults and 8 without. Has effect only before JAX's first use of a device; does nothing where the C
    library has no mallopt.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    for option, value in _MALLOPT.values():
        mallopt(option, value)


# XLA lets a CPU have this many programs under way; each occupies a thread a device while it waits for the others.
_PROGRAMS_IN_FLIGHT = 34


def give_simulated_devices_threads() -> None:
    """Gives a CPU that simulates several devices (XLA_FLAGS or jax_num_cpu_devices) a thread for all that can wait.

    By default XLA makes one thread a device. Two programs under way at once can then hold each other's threads in their
    collectives, and the process hangs until XLA ends it. Has effect only before JAX's first use of a device.
    """
    flag = re.search(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    devices = max(int(flag[1]) if flag else 1, jax.config.jax_num_cpu_devices)  # type: ignore[attr-defined, unused-ignore]  # not told before jax 0.11
    if devices > 1:
        os.environ.setdefault("PJRT_NPROC", str(devices * _PROGRAMS_IN_FLIGHT))
