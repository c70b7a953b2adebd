"""The machine a plan is made for: chips, how they are joined, and which links each mesh axis can use."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from lm_research.errors import MeshError, suggest
from lm_research.parallel.hardware import CHIPS, Chip
from lm_research.parallel.mesh import AXES


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` equal groups of chips; inside one the chips' own links, between them the data-center network."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips_per_slice(self) -> int:
        return math.prod(self.shape)

    @property
    def platform(self) -> str:
        """What JAX calls chips of this kind."""
        return "tpu" if self.chip.torus else "gpu"

    @property
    def num_chips(self) -> int:
        return self.slices * self.chips_per_slice

    def __str__(self) -> str:
        return f"{self.slices} x {self.name}" if self.slices > 1 else self.name


def parse_topology(text: str, slices: int = 1) -> Topology:
    """`v5e:16x16` (a TPU slice), `h200:8` (GPUs of one machine), as many times as there are slices or machines.

    Raises:
      MeshError: no such chip, a shape it cannot have, or no positive number of slices.
    """
    name, _, sides = text.lower().partition(":")
    example = "Write for example v5e:16x16, v5p:4x4x4 or h200:8."
    if name not in CHIPS:
        raise MeshError(f"topology {text!r}: there is no chip {name!r} here. {suggest(name, CHIPS)} {example}")
    chip = CHIPS[name]
    if not re.fullmatch(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4})*", sides):
        raise MeshError(f"topology {text!r}: {sides!r} is not a number of chips along each side. {example}")
    shape = tuple(int(side) for side in sides.split("x"))
    if len(shape) != (chip.torus or 1):
        wanted = f"a torus of {chip.torus} dimensions" if chip.torus else "counted, not arranged"
        raise MeshError(f"topology {text!r}: {name} chips are {wanted}, but {sides} has {len(shape)}. {example}")
    if slices < 1:
        raise MeshError(f"--slices={slices} must be 1 or more: so many slices or machines work together.")
    return Topology(f"{name}:{sides}", chip, shape, slices)


def links(topology: Topology, mesh: Mapping[str, int]) -> dict[str, float]:
    """Bytes/s that one chip can send along each mesh axis, within a slice.

    Mesh axes take the torus' dimensions from the innermost on, which is how jax lays devices out; an axis that spans a
    dimension uses its two links where the dimension is a ring, and one where it is a line or shared with another
    axis. On GPUs every axis has the whole of NVLink (a switch joins all of them).
    """
    chip = topology.chip
    if not chip.torus:
        return {axis: chip.link_bandwidth for axis in mesh}
    rest, result = list(topology.shape), {}
    for axis in reversed(AXES):
        wanted, used = mesh[axis], 0
        for place in reversed(range(len(rest))):
            share = math.gcd(wanted, rest[place])
            if share > 1:
                whole = share == topology.shape[place] and share % chip.wraps_at == 0
                used += 2 if whole else 1
                wanted, rest[place] = wanted // share, rest[place] // share
        result[axis] = chip.link_bandwidth * max(1, used)
    return result
