"""Hardware of a plan: chips, their connections, and the links that each mesh axis can use."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from lm_research.errors import MeshError, suggest
from lm_research.parallel.hardware import CHIPS, Chip
from lm_research.parallel.mesh import AXES

# Bandwidth between the two devices of a chip, in links to a neighbor (docs.cloud.google.com/tpu/docs/tpu7x, "Dual-chiplet architecture").
DIE_LINKS = 6


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` equal groups of chips, connected by the chips' links within a group and by the data-center network between groups."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip_name(self) -> str:
        """The key of the chip in CHIPS."""
        return self.name.partition(":")[0]

    @property
    def chips_per_slice(self) -> int:
        """Number of chips of one slice."""
        return math.prod(self.shape)

    @property
    def platform(self) -> str:
        """JAX's name of the platform."""
        return "tpu" if self.chip.torus else "gpu"

    @property
    def num_chips(self) -> int:
        """Number of chips of all slices."""
        return self.slices * self.chips_per_slice

    @property
    def device(self) -> Chip:
        """The rates and memory of one JAX device."""
        return self.chip.device

    @property
    def num_devices(self) -> int:
        """Number of JAX devices of all slices; a chip can have two."""
        return self.num_chips * self.chip.devices

    def __str__(self) -> str:
        return f"{self.slices} x {self.name}" if self.slices > 1 else self.name


def parse_topology(text: str, slices: int = 1) -> Topology:
    """Parse `v5e:16x16` (a TPU slice) or `h200:8` (GPUs of one machine), multiplied by a number of slices or machines.

    Raises:
      MeshError: the chip is unknown, the shape is invalid for it, or the number of slices is not positive.
    """
    name, _, sides = text.lower().partition(":")
    example = "Write for example v5e:16x16, v5p:4x4x4 or h200:8."
    if name not in CHIPS:
        raise MeshError(f"topology {text!r}: {name!r} is not a supported chip. {suggest(name, CHIPS)} {example}")
    chip = CHIPS[name]
    if not re.fullmatch(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4})*", sides):
        raise MeshError(f"topology {text!r}: {sides!r} is not a number of chips along each side. {example}")
    shape = tuple(int(side) for side in sides.split("x"))
    if len(shape) != (chip.torus or 1):
        expected = f"a torus of {chip.torus} dimensions" if chip.torus else "counted in one dimension"
        raise MeshError(f"topology {text!r}: {name} chips are {expected}, but {sides} has {len(shape)}. {example}")
    if slices < 1:
        raise MeshError(f"--slices={slices} is not a number of slices or machines. Use 1 or more.")
    return Topology(f"{name}:{sides}", chip, shape, slices)


class Span(NamedTuple):
    """A part of a dimension of the torus that a mesh axis takes: its length, and whether its links form a ring."""

    length: int
    is_ring: bool
    within_chips: bool = False


def spans(topology: Topology, mesh: Mapping[str, int]) -> dict[str, list[Span]]:
    """Divide the dimensions of the torus among the mesh axes.

    Axes take dimensions from the innermost one, as jax arranges devices; the devices of a chip come before all of them. GPUs have a
    single dimension, their switch.
    """
    sides = (*topology.shape, topology.chip.devices)
    rest, result = list(sides), dict[str, list[Span]]()
    for axis in reversed([axis for axis in AXES if axis in mesh]):
        remaining, result[axis] = mesh[axis], []
        for dimension in reversed(range(len(rest))):
            size = math.gcd(remaining, rest[dimension])
            if size > 1:
                inside = dimension == len(topology.shape)
                whole = not inside and size == sides[dimension]
                result[axis].append(Span(size, whole and topology.chip.closes(topology.shape, dimension), inside))
                remaining, rest[dimension] = remaining // size, rest[dimension] // size
    return result


def links(topology: Topology, mesh: Mapping[str, int]) -> dict[str, float]:
    """Return the bytes/s that one device can send along each mesh axis within a slice.

    An axis that spans a dimension uses two links if the dimension is a ring, and one link if it is a line or shared with another axis. The
    devices of a chip share its links, and are connected by DIE_LINKS times the bandwidth of one, which limits only axes that do not leave
    the chip. On GPUs every axis has the full NVLink bandwidth (all GPUs are connected by a switch).
    """
    chip = topology.chip
    if not chip.torus:
        return {axis: chip.link_bandwidth for axis in mesh}
    result = {}
    for axis, found in spans(topology, mesh).items():
        used = sum(1 + span.is_ring for span in found if not span.within_chips)
        if found and not used:
            used = DIE_LINKS * chip.devices
        result[axis] = chip.device.link_bandwidth * max(1, used)
    return result


def hops(topology: Topology, mesh: Mapping[str, int]) -> dict[str, int]:
    """Return the number of links between the farthest devices of each mesh axis: half of a ring, all of a line; 1 on GPUs."""
    if not topology.chip.torus:
        return {axis: int(size > 1) for axis, size in mesh.items()}
    found = spans(topology, mesh)
    return {axis: sum(s.length // 2 if s.is_ring else s.length - 1 for s in parts) for axis, parts in found.items()}
