"""The host process: memory."""

from __future__ import annotations

import ctypes

# glibc's mallopt options (malloc.h) and what they are set to: one arena, no separate mapping for big blocks, nothing
# given back, 64 MiB at a time from the system.
_MALLOPT = {
    "M_ARENA_MAX": (-8, 1),
    "M_MMAP_MAX": (-4, 0),
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),
    "M_TOP_PAD": (-2, 64 << 20),
}


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
