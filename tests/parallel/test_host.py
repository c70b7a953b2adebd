"""Threads for simulated devices, and an allocator that keeps what is freed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lm_research.parallel import cpu_runtime

PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from lm_research.parallel import cpu_runtime

cpu_runtime.keep_freed_memory()
cpu_runtime.give_simulated_devices_threads()
mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
x = jax.device_put(np.ones((16, 16), np.float32), NamedSharding(mesh, PartitionSpec("a", "b")))
update = jax.jit(lambda x: jnp.tanh(x @ x.T @ x) , out_shardings=x.sharding)
total = jax.jit(lambda x: (x * x).sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))
sums = []
for _ in range(100):
    x = update(x)
    sums += [total(x), total(x + 1)]
print(len(jax.device_get(sums)))
"""


def test_many_programs_in_flight_do_not_deadlock() -> None:
    """With XLA's own number of threads this program hangs until XLA ends it after 40 seconds."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    environment = {name: value for name, value in os.environ.items() if name != "PJRT_NPROC"} | flags
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "200", done.stderr[-2000:]


@pytest.mark.parametrize(
    ("flags", "threads"),
    [
        ("", None),
        ("--xla_force_host_platform_device_count=1", None),
        ("--a --xla_force_host_platform_device_count=4", "136"),
    ],
)
def test_threads_follow_the_number_of_simulated_devices(
    flags: str, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    cpu_runtime.give_simulated_devices_threads()
    assert os.environ.get("PJRT_NPROC") == threads
    monkeypatch.delenv("PJRT_NPROC", raising=False)


def test_the_users_own_number_of_threads_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    monkeypatch.setenv("PJRT_NPROC", "7")
    cpu_runtime.give_simulated_devices_threads()
    assert os.environ["PJRT_NPROC"] == "7"
