"""TPU chips as clouds name them, and slices of them as users write them: `v5litepod-16`, `v5e:4x4` or a GKE label and a topology.

Sources, all under docs.cloud.google.com: names, topologies and machines from /tpu/docs/{v4,v5e,v5p,v6e,tpu7x} and
/kubernetes-engine/docs/concepts/plan-tpus, runtime versions from /tpu/docs/runtimes, quotas from the Cloud Quotas list of
tpu.googleapis.com. Peak rates and memory of the same chips are in lm_research/parallel/hardware.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

from launch.errors import LaunchError
from lm_research.errors import suggest

CUBE = 4  # sides of large 3D slices are multiples of it


@dataclasses.dataclass(frozen=True)
class ChipNames:
    """Names of a chip.

    Attributes:
      prefix: of the accelerator type, before the dash and the number.
      cores: TensorCores that the number counts per chip; 1 if it counts chips.
      label: value of GKE's node label cloud.google.com/gke-tpu-accelerator.
      machine: prefix of the Compute Engine machine type, before the number of chips and "t".
      hosts: numbers of chips that a machine can have.
      runtime: runtime version of TPU VMs; empty if the Cloud TPU API does not serve the chip.
      quota: beginning of the names of its quotas.
      flat: topologies of a 2D chip; a 3D chip has none here and `cubes` instead.
      cubes: largest number of 4x4x4 cubes of a 3D chip.
      skypilot: prefix of SkyPilot's accelerator.
    """

    prefix: str
    cores: int
    label: str
    machine: str
    hosts: tuple[int, ...]
    runtime: str
    quota: str
    flat: tuple[str, ...] = ()
    cubes: int = 0

    @property
    def topologies(self) -> tuple[str, ...]:
        """All topologies, smallest first."""
        if self.flat:
            return self.flat
        sides = range(CUBE, CUBE * self.cubes + 1, CUBE)
        large = (
            (a, b, c)
            for a, b in itertools.combinations_with_replacement(sides[: round(self.cubes**0.5) + 1], 2)
            for c in range(b, CUBE**3 * self.cubes // (a * b) + 1, CUBE)
        )
        small = (["1x1x1"] if 1 in self.hosts else []) + ["2x2x1", "2x2x2", "2x2x4", "2x4x4"]
        return (*small, *("x".join(map(str, shape)) for shape in sorted(large, key=lambda s: (math.prod(s), s[2]))))


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CHIPS = {
    "v4": ChipNames("v4", 2, "tpu-v4-podslice", "ct4p-hightpu-", (4,), "tpu-ubuntu2204-base", "TPUV4", cubes=64),
    "v5e": ChipNames(
        "v5litepod", 1, "tpu-v5-lite-podslice", "ct5lp-hightpu-", (1, 4, 8), "v2-alpha-tpuv5-lite", "TPUV5s", _FLAT
    ),
    "v5p": ChipNames("v5p", 2, "tpu-v5p-slice", "ct5p-hightpu-", (4,), "v2-alpha-tpuv5", "TPUV5P", cubes=140),
    "v6e": ChipNames("v6e", 1, "tpu-v6e-slice", "ct6e-standard-", (1, 4, 8), "v2-alpha-tpuv6e", "TPUV6E", _FLAT),
    "tpu7x": ChipNames("tpu7x", 2, "tpu7x", "tpu7x-standard-", (1, 4), "", "", cubes=144),
}
_OLD = ("v2", "v3")  # chips that the package has no data of
EXAMPLES = "v5litepod-16 or v5e:4x4"


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips that are connected with each other.

    Attributes:
      chip: key of CHIPS.
      topology: number of chips along each side, such as 4x4.
      chips_per_host: chips of one machine.
    """

    chip: str
    topology: str
    chips_per_host: int

    @property
    def names(self) -> ChipNames:
        """Names of its chip."""
        return CHIPS[self.chip]

    @property
    def chips(self) -> int:
        """Number of chips."""
        return _product(self.topology)

    @property
    def hosts(self) -> int:
        """Number of machines."""
        return self.chips // self.chips_per_host

    @property
    def accelerator_type(self) -> str:
        """Name in the Cloud TPU API, XPK and SkyPilot, such as v5litepod-16."""
        return f"{self.names.prefix}-{self.chips * self.names.cores}"

    @property
    def machine_type(self) -> str:
        """Compute Engine's name of its machines."""
        return f"{self.names.machine}{self.chips_per_host}t"

    @property
    def is_default(self) -> bool:
        """Whether the accelerator type alone means this topology."""
        return self.topology == _default_topology(self.names, self.chips)

    def __str__(self) -> str:
        return f"{self.chip}:{self.topology}"


def find_slice(accelerator: str, topology: str = "", chips_per_host: int = 0) -> Slice:
    """Return the slice that an accelerator and, for GKE's names or an unusual shape, a topology mean.

    Args:
      accelerator: a type (v5litepod-16), a chip with its topology (v5e:4x4), or a chip or GKE label whose topology is given.
      topology: number of chips along each side.
      chips_per_host: 0 for the usual machine; v5e and v6e in the shape 2x4 exist as one machine of 8 and as two of 4.

    Raises:
      LaunchError: there is no such slice; the message has the nearest names.
    """
    name, colon, shape = accelerator.partition(":")
    if colon:
        if topology not in ("", shape):
            raise LaunchError(f"--accelerator={accelerator} and --topology={topology} differ. Leave out --topology.")
        topology = shape
    chip, count = _chip_of(name, accelerator)
    names = CHIPS[chip]
    if count:
        topology = topology or _default_topology(names, count) or _refuse_count(chip, count)
    if not topology:
        raise LaunchError(
            f"--accelerator={accelerator} has no size. Add --topology, for example --topology={_example(names)}, "
            f"or write {names.prefix}-{_product(_example(names)) * names.cores}."
        )
    if topology not in names.topologies:
        _refuse_topology(chip, topology)
    if count and _product(topology) != count:
        raise LaunchError(
            f"--accelerator={accelerator} has {count} chips, but --topology={topology} has {_product(topology)}. Leave out one of them."
        )
    return Slice(chip, topology, _host(chip, topology, chips_per_host))


def _chip_of(name: str, given: str) -> tuple[str, int]:
    """Return the chip that a name without topology means, and the number of chips in the name, or 0."""
    labels = {names.label: chip for chip, names in CHIPS.items()}
    if name in labels or name in CHIPS:
        return labels.get(name, name), 0
    prefixes = {names.prefix: chip for chip, names in CHIPS.items()}
    prefix, dash, number = name.rpartition("-")
    if dash and prefix in prefixes and re.fullmatch(r"[1-9][0-9]{0,5}", number):
        names = CHIPS[prefixes[prefix]]
        if int(number) % names.cores:
            raise LaunchError(
                f"--accelerator={given}: the number of {prefix} counts TensorCores, two per chip, so it is even. Write for example {prefix}-8."
            )
        return prefixes[prefix], int(number) // names.cores
    lower = name.lower().replace("_", "-")
    if lower != name and (lower in labels or lower in CHIPS or lower.rpartition("-")[0] in prefixes):
        raise LaunchError(f"--accelerator={given} does not exist. Names are in lower case: {lower}.")
    if lower.partition("-")[0] in _OLD:
        raise LaunchError(
            f"--accelerator={given}: TPU v2 and v3 are not supported; this package begins with v4. Use {', '.join(CHIPS)}."
        )
    base = lower.rpartition("-")[0]
    if base in CHIPS and number.isdecimal():  # v5e-16
        raise LaunchError(
            f"--accelerator={given} does not exist: the type of {base} chips is called {CHIPS[base].prefix}-{number}."
        )
    known = {*prefixes, *CHIPS, *labels}
    raise LaunchError(
        f"--accelerator={given} is not a TPU. {suggest(base or lower, known)} Write a type or a chip with its topology, for example {EXAMPLES}."
    )


def _default_topology(names: ChipNames, count: int) -> str:
    """Return the topology of an accelerator type, the most even one; empty if no topology has so many chips."""
    fitting = [topology for topology in names.topologies if _product(topology) == count]
    return min(fitting, key=lambda t: (max(_sides(t)), -min(_sides(t))), default="")


def _host(chip: str, topology: str, given: int) -> int:
    """Return the number of chips of a machine."""
    chips, names = _product(topology), CHIPS[chip]
    sizes = [size for size in names.hosts if chips % size == 0 and (size == 4 or chips == size)]
    if given and given not in sizes:
        raise LaunchError(
            f"--chips={given}: machines of {chip}:{topology} have {' or '.join(map(str, sizes))} chips. Leave out --chips."
        )
    return given or max(sizes)


def _refuse_count(chip: str, count: int) -> str:
    names = CHIPS[chip]
    sizes = sorted({_product(topology) for topology in names.topologies}, key=lambda size: (abs(size - count), size))
    near = " or ".join(f"{names.prefix}-{size * names.cores}" for size in sorted(sizes[:2]))
    raise LaunchError(
        f"--accelerator={names.prefix}-{count * names.cores}: no such slice exists. The nearest are {near}."
    )


def _refuse_topology(chip: str, topology: str) -> None:
    names = CHIPS[chip]
    start = f"--topology={topology}: {chip} has no such slice."
    if not re.fullmatch(r"[1-9][0-9]{0,3}(x[1-9][0-9]{0,3})*", topology):
        raise LaunchError(f"{start} A topology is the number of chips along each side, for example {_example(names)}.")
    dimensions, sides = len(_sides(_example(names))), _sides(topology)
    if len(sides) != dimensions:
        raise LaunchError(f"{start} It has {dimensions} sides, for example {_example(names)}.")
    ordered = "x".join(map(str, sorted(sides)))
    if ordered in names.topologies:
        raise LaunchError(f"{start} Write the shorter sides first: {ordered}.")
    size = math.prod(sides)
    near = sorted(names.topologies, key=lambda t: (abs(_product(t) - size), max(_sides(t))))[:3]
    raise LaunchError(f"{start} The nearest are {', '.join(near)}.")


def _sides(topology: str) -> list[int]:
    return [int(side) for side in topology.split("x")]


def _product(topology: str) -> int:
    return math.prod(_sides(topology))


def _example(names: ChipNames) -> str:
    return "4x4" if names.flat else "2x2x2"
