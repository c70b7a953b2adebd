"""Names of TPU slices mean what Google's documentation says, and names that do not exist are refused with the nearest ones."""

from __future__ import annotations

import pytest

from launch.chips import CHIPS, Slice, find_slice
from launch.errors import LaunchError
from lm_research.parallel import hardware


@pytest.mark.parametrize(
    ("given", "topology", "chips", "hosts", "machine", "accelerator_type"),
    [  # docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, "Configurations", and kubernetes-engine/docs/concepts/plan-tpus
        ("v4-8", "2x2x1", 4, 1, "ct4p-hightpu-4t", "v4-8"),
        ("v4-32", "2x2x4", 16, 4, "ct4p-hightpu-4t", "v4-32"),
        ("v4-512", "4x8x8", 256, 64, "ct4p-hightpu-4t", "v4-512"),
        ("v4-4096", "8x16x16", 2048, 512, "ct4p-hightpu-4t", "v4-4096"),
        ("v5p-32", "2x2x4", 16, 4, "ct5p-hightpu-4t", "v5p-32"),
        ("v5p-12288", "16x16x24", 6144, 1536, "ct5p-hightpu-4t", "v5p-12288"),
        ("v5litepod-1", "1x1", 1, 1, "ct5lp-hightpu-1t", "v5litepod-1"),
        ("v5litepod-4", "2x2", 4, 1, "ct5lp-hightpu-4t", "v5litepod-4"),
        ("v5litepod-8", "2x4", 8, 1, "ct5lp-hightpu-8t", "v5litepod-8"),
        ("v5litepod-16", "4x4", 16, 4, "ct5lp-hightpu-4t", "v5litepod-16"),
        ("v5e:16x16", "16x16", 256, 64, "ct5lp-hightpu-4t", "v5litepod-256"),
        ("v6e-8", "2x4", 8, 1, "ct6e-standard-8t", "v6e-8"),
        ("v6e-256", "16x16", 256, 64, "ct6e-standard-4t", "v6e-256"),
        ("tpu7x:2x2x2", "2x2x2", 8, 2, "tpu7x-standard-4t", "tpu7x-16"),
        ("tpu7x-2", "1x1x1", 1, 1, "tpu7x-standard-1t", "tpu7x-2"),
    ],
)
def test_slices(given: str, topology: str, chips: int, hosts: int, machine: str, accelerator_type: str) -> None:
    found = find_slice(given)
    assert (found.topology, found.chips, found.hosts, found.machine_type) == (topology, chips, hosts, machine)
    assert found.accelerator_type == accelerator_type and found.is_default


def test_labels_of_gke_and_unusual_machines() -> None:
    assert find_slice("tpu-v5-lite-podslice", "4x8") == Slice("v5e", "4x8", 4)
    assert find_slice("tpu-v6e-slice", "2x4", 4).hosts == 2  # the same shape exists on two kinds of machines
    assert find_slice("v5p-512", "4x4x16").is_default is False and find_slice("v5p-512").topology == "4x8x8"


def test_runtime_versions() -> None:
    """docs.cloud.google.com/tpu/docs/runtimes; the Cloud TPU API does not serve TPU7x (tpu/docs/tpus-in-compute-engine)."""
    assert {chip: names.runtime for chip, names in CHIPS.items()} == {
        "v4": "tpu-ubuntu2204-base",
        "v5e": "v2-alpha-tpuv5-lite",
        "v5p": "v2-alpha-tpuv5",
        "v6e": "v2-alpha-tpuv6e",
        "tpu7x": "",
    }


def test_the_chips_are_those_of_plans() -> None:
    planned = {name: chip.torus for name, chip in hardware.CHIPS.items() if chip.torus}
    assert {chip: len(names.topologies[-1].split("x")) for chip, names in CHIPS.items()} == planned


@pytest.mark.parametrize(
    ("accelerator", "topology", "chips", "said"),
    [
        ("v5e-16", "", 0, "is called v5litepod-16"),
        ("V5E-16", "", 0, "is called v5litepod-16"),
        ("v5litepod16", "", 0, "Did you mean 'v5litepod'"),
        ("V5LitePod-16", "", 0, "lower case: v5litepod-16"),
        ("v5litepod-17", "", 0, "The nearest are v5litepod-8 or v5litepod-16"),
        ("v5litepod-512", "", 0, "The nearest are v5litepod-128 or v5litepod-256"),
        ("v4-33", "", 0, "two per chip"),
        ("v5p-24", "", 0, "The nearest are v5p-16 or v5p-32"),
        ("v3-8", "", 0, "v2 and v3 are not supported"),
        ("v7-16", "", 0, "is not a TPU"),
        ("v5 lite", "", 0, "is not a TPU"),
        ("", "", 0, "is not a TPU"),
        ("v6e", "", 0, "has no size"),
        ("tpu-v5-lite-podslice", "", 0, "Add --topology"),
        ("tpu-v5e-slice", "4x4", 0, "Did you mean 'tpu-v"),
        ("v5e:8x4", "", 0, "shorter sides first: 4x8"),
        ("v5e:3x3", "", 0, "The nearest are 2x4, 2x2, 4x4"),
        ("v5e:4x4x4", "", 0, "It has 2 sides"),
        ("v5p", "4x4", 0, "It has 3 sides"),
        ("v5e", "4*4", 0, "number of chips along each side"),
        ("v5e:4x4", "8x8", 0, "differ"),
        ("v5litepod-16", "8x8", 0, "has 16 chips, but --topology=8x8 has 64"),
        ("v5e:4x4", "", 8, "have 4 chips"),
    ],
)
def test_what_does_not_exist(accelerator: str, topology: str, chips: int, said: str) -> None:
    with pytest.raises(LaunchError) as error:
        find_slice(accelerator, topology, chips)
    assert said in str(error.value) and len(str(error.value)) < 500
