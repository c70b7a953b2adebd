"""Ring attention, and flash, on eight devices equals whole attention on one, in value and gradient."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from helpers.devices import eight_devices
from lm_research.models.positions import by_distance, distance_table, relative_bias

CASES = ("window and dropout", "prefix", "relative, dropout", "relative, causal")
CASES += ("flash, window and dropout", "window to both sides, capped", "pattern of a decoder")
CASES += ("tables of layers and global tokens", "distances and convolutions")
PLAINER = ("bidirectional", "causal", "pattern of an encoder")  # what they compute is a part of another case


def run(*cases: str) -> dict[str, list[float]]:
    command = [sys.executable, "-m", "helpers.rings", *cases]
    done = subprocess.run(command, env=eight_devices(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def differences() -> dict[str, list[float]]:
    return run(*CASES)


@pytest.mark.parametrize("case", CASES)
def test_a_ring_equals_whole_attention(case: str, differences: dict[str, list[float]]) -> None:
    assert max(differences[case]) < 1e-5


@pytest.mark.slow
def test_plainer_rings_equal_whole_attention() -> None:
    found = run(*PLAINER)
    assert set(found) == set(PLAINER) and max(max(values) for values in found.values()) < 1e-5


def test_values_by_distance() -> None:
    """Entry (l, s) of [L, S] is the value of distance s - l; the first value is that of distance 1 - L."""
    values = np.arange(2 * 6).reshape(2, 6)
    expected = [[[h * 6 + s - q + 2 for s in range(4)] for q in range(3)] for h in range(2)]
    np.testing.assert_array_equal(by_distance(values, 3), expected)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_table_by_distance_holds_the_bias(bidirectional: bool) -> None:
    table = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    whole = relative_bias(table, 12, 12, 16, bidirectional)
    np.testing.assert_array_equal(by_distance(distance_table(table, 12, 16, bidirectional), 12), whole[0])
