"""Rows of a batch on devices and processes."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from lm_research.config import MeshConfig, resolve
from lm_research.errors import MeshError
from lm_research.parallel import batches
from lm_research.parallel.batches import check_batch, local_rows, resolve_batch, to_global
from lm_research.parallel.mesh import AXES, make_mesh


def mesh(data: int, fsdp: int, context: int, tensor: int) -> AbstractMesh:
    return AbstractMesh((data, fsdp, 1, context, tensor), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


@pytest.mark.parametrize(
    ("shape", "size", "accumulation"),
    [((8, 1, 1, 1), 16, 2), ((2, 2, 4, 2), 4, 1), ((1, 1, 1, 8), 3, 3), ((1, 1, 1, 1), 5, 5)],
)
def test_batches_that_can_be_divided(shape: tuple, size: int, accumulation: int) -> None:
    check_batch(mesh(*shape), size, accumulation, length=16)


def test_batches_that_cannot_be_divided_are_refused_with_the_arithmetic() -> None:
    with pytest.raises(MeshError) as refused:
        check_batch(mesh(2, 4, 1, 1), 24, 2, 16)
    assert str(refused.value) == (
        "mesh: a micro-batch of 12 examples (train.batch_size=24 / train.accumulation_steps=2) cannot be divided equally "
        "over 8 devices (data=2 x fsdp=4). Make train.batch_size a multiple of 16."
    )


def test_a_batch_per_device_counts_the_devices_with_separate_rows() -> None:
    """4 examples on each of 2 x 4 devices (those of `tensor` and `context` share theirs), in 3 micro-batches: 96."""
    config = resolve(
        {
            "train": {"per_device_batch_size": 4, "accumulation_steps": 3},
            "mesh": {"data": 2, "fsdp": 4, "context": 2, "tensor": 2},
        }
    )
    settled = resolve_batch(config, 32)
    assert (settled.train.batch_size, settled.train.per_device_batch_size) == (96, None)
    check_batch(mesh(2, 4, 2, 2), settled.train.batch_size, 3, length=16)
    assert resolve_batch(settled, 8) is settled  # and stays so on other devices


def test_rows_that_cannot_be_divided_are_refused_with_the_arithmetic() -> None:
    with pytest.raises(MeshError) as refused:
        check_batch(mesh(1, 2, 4, 1), 8, 1, 514)
    assert str(refused.value) == (
        "mesh: rows of 514 positions (data.max_length) cannot be divided over context=4 devices (514 = 128 x 4 + 2). Change "
        "mesh.context or data.max_length."
    )


def fake_sharding(devices: range, ways: int, copies: int) -> types.SimpleNamespace:
    """The rows that this process holds with `devices` of `ways` x `copies`; copies (tensor) are innermost."""

    def spans(shape: tuple[int]) -> dict[int, tuple[slice]]:
        share = shape[0] // ways
        return {d: (slice(d // copies * share, (d // copies + 1) * share),) for d in devices}

    return types.SimpleNamespace(addressable_devices_indices_map=spans)


@pytest.mark.parametrize(
    ("devices", "ways", "copies", "expected"),
    [
        (range(0, 4), 8, 1, slice(0, 8)),  # two processes of four devices
        (range(4, 8), 8, 1, slice(8, 16)),
        (range(4, 8), 4, 2, slice(8, 16)),  # tensor inside a process
        (range(2, 4), 2, 4, slice(0, 8)),  # tensor across two processes: both need the same rows
        (range(4, 6), 2, 4, slice(8, 16)),
        (range(3, 4), 1, 8, slice(0, 16)),
    ],
)
def test_a_process_reads_the_rows_its_devices_need(
    devices: range, ways: int, copies: int, expected: slice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "batch_sharding", lambda mesh: fake_sharding(devices, ways, copies))
    assert local_rows(None, 16) == expected


def test_one_process_holds_everything() -> None:
    single = make_mesh(MeshConfig(), jax.devices()[:1])
    assert local_rows(single, 12) == slice(0, 12)
    batch = {"tokens_BL": np.arange(24).reshape(2, 4, 3), "weights_B": np.ones((2, 4), np.float32)}
    placed = to_global(single, batch, leading=1)
    for name, value in batch.items():
        np.testing.assert_array_equal(placed[name], value)
        assert placed[name].sharding.spec == jax.sharding.PartitionSpec(None, ("data", "fsdp", "expert"))
