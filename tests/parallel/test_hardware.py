"""Peak FLOP/s from the name that a device reports."""

from __future__ import annotations

import types

import jax
import pytest

from lm_research.parallel import hardware


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),  # v5e
        ("TPU v5", 459e12),  # v5p
        ("TPU v6 lite", 918e12),  # v6e
        ("TPU7x", 2307e12 / 2),  # a device is half a chip
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
    ],
)
def test_peaks_of_accelerators(kind: str, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    device = types.SimpleNamespace(platform="gpu", device_kind=kind)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    flops, source = hardware.peak_flops()
    assert flops == 4 * expected and kind in source


def test_an_unknown_accelerator_has_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(platform="gpu", device_kind="Abacus 3000")])
    assert hardware.peak_flops() == (None, "no peak known for Abacus 3000")


def test_a_cpu_is_measured() -> None:
    assert 1e8 < hardware._measured_cpu_flops(size=256) < 1e14
