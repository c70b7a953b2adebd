"""The environment of processes that have eight devices."""

from __future__ import annotations

import os


def eight_devices() -> dict[str, str]:
    """This process's environment, with eight simulated devices. The options that make tests compile quickly (conftest.py) stay."""
    return os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
        "PJRT_NPROC": "272",  # see parallel/cpu_runtime.py
        "JAX_PLATFORMS": "cpu",
    }
