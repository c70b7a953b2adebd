"""Collectives of an optimized HLO module: their mesh axes, bytes, and time at the rate of the links.

With a ring over n devices, each device sends (n - 1) / n of an array for an all-gather, a reduce-scatter or an all-to-all, and twice that
for an all-reduce (Patarasuk and Yuan 2009).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from lm_research.planning.program import Array, Computation, Instruction, Program
from lm_research.planning.topology import Topology, links
from lm_research.planning.traffic import PASSES

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_ROUNDS = PASSES | {"all-to-all": 1, "collective-broadcast": 1}


@dataclasses.dataclass(frozen=True)
class Network:
    """Connections of the devices of a mesh.

    Attributes:
      shape: size of each mesh axis; devices are numbered in its row-major order.
      speed: bytes/s that a device can send along each axis within a slice.
      link: bytes/s of one link.
      slices: number of slices, parts of the axis `crossing`.
      crossing: mesh axis that spans slices, or None.
      network_bandwidth: bytes/s of a device between slices.
    """

    shape: Mapping[str, int]
    speed: Mapping[str, float]
    link: float
    slices: int = 1
    crossing: str | None = None
    network_bandwidth: float = math.inf

    @classmethod
    def of(cls, topology: Topology, shape: Mapping[str, int], crossing: str | None) -> Network:
        """Return the network of a mesh over a topology."""
        device = topology.device
        speed = links(topology, shape)
        return cls(dict(shape), speed, device.link_bandwidth, topology.slices, crossing, device.network_bandwidth)


@dataclasses.dataclass(frozen=True)
class Group:
    """Devices of one group of a collective: how many, along which mesh axes, and in how many slices."""

    size: int
    axes: tuple[str, ...]
    slices: int = 1


def collective(program: Program, one: Instruction) -> tuple[Instruction, bool] | None:
    """Return the collective that an instruction is, starts or contains, and whether it is asynchronous; or None.

    A fusion that contains one overlaps it with its own products. The compiler writes the same transfer into several such fusions, which
    have the same channel: one that starts it, steps (also in loops between), and one that ends it.
    """
    if (kind := kind_of(one)) is not None:
        return one, one.opcode != kind
    inner = program.called(one) if one.opcode in ("fusion", "async-start") else None
    for part in inner.instructions.values() if inner else ():
        if (found := collective(program, part)) is not None:
            return found[0], True
    return None


def phase(program: Program, fusion: Instruction) -> str:
    """Return whether a fusion is the `start`, a `step` or the `done` of the collective in it."""
    inner = program.called(fusion)
    targets = (
        {part.attribute(r'custom_call_target="(\w+)"') for part in inner.instructions.values()} if inner else set()
    )
    return "start" if "AsyncCollectiveStart" in targets else "done" if "AsyncCollectiveDone" in targets else "step"


def kind_of(one: Instruction) -> str | None:
    """Return the kind of a collective, or None; the ends of asynchronous ones are no collectives."""
    name = one.opcode.removesuffix("-start")
    return name if name in KINDS else None


def channel(one: Instruction) -> str:
    """Return the identity of a transfer.

    Transfers of jax.shard_map all have channel 1. So a permutation, which occurs in one place, is identified by its name, and other
    transfers also by the operation that they come from.
    """
    number = one.attribute(r"channel_id=(\d+)")
    if kind_of(one) == "collective-permute" or not number:
        return one.name
    return number + (one.attribute(r'op_name="([^"]*)"') or "" if number == "1" else "")


def array_bytes(computation: Computation | None, one: Instruction) -> int:
    """Return the bytes of a transfer's arrays, the larger of input and output, without padding."""
    results: tuple[Array, ...] = one.arrays
    inputs = sum(a.num_bytes for operand in (computation.operands(one) if computation else ()) for a in operand.arrays)
    if one.opcode.endswith("-start") and kind_of(one) != "all-reduce":  # the result repeats the operands
        return max(inputs, sum(a.num_bytes for a in results if a.dtype not in ("u32", "s32") or a.dims) - inputs)
    return max(inputs, sum(a.num_bytes for a in results))


def group(one: Instruction, network: Network) -> Group:
    """Return the devices that communicate, from replica_groups (lists or iota) or source_target_pairs."""
    members = _members(one, math.prod(network.shape.values()))
    sides = tuple(network.shape.values())
    coordinates = np.stack(np.unravel_index(members, sides), axis=-1)  # [groups, members, axes]
    varies = (coordinates != coordinates[:, :1]).any(axis=(0, 1))
    axes = tuple(axis for axis, differs in zip(network.shape, varies, strict=True) if differs)
    slices = 1
    if network.crossing in axes:
        place = coordinates[0, :, list(network.shape).index(network.crossing)]
        slices = len(set(place // (network.shape[network.crossing] // network.slices)))
    return Group(members.shape[1], axes, slices)


def _members(one: Instruction, devices: int) -> np.ndarray:
    """Return the numbers of the devices of each group, [groups, members]."""
    if pairs := one.attribute(r"source_target_pairs=\{(\{[\d,{} ]*\})\}"):
        return np.array([[int(n) for n in pair.split(",")] for pair in re.findall(r"\{([\d, ]+)\}", pairs)])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", one.attributes):
        return _along(named[1], named[2])
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", one.attributes)
    if iota:
        shape, sides = ([int(n) for n in part.split(",")] for part in iota.groups()[:2])
        order = [int(n) for n in iota[3].split(",")] if iota[3] else range(len(sides))
        return np.arange(math.prod(sides)).reshape(sides).transpose(order).reshape(shape[0], -1)
    listed = one.attribute(r"replica_groups=\{(\{[\d,{} ]*\})\}")
    if not listed:
        return np.arange(devices)[None]
    return np.array([[int(n) for n in part.split(",")] for part in re.findall(r"\{([\d, ]+)\}", listed)])


def _along(mesh: str, axes: str) -> np.ndarray:
    """Return the devices of each group along axes of a mesh written as 'a'=2,'b'=4 and 'b' (or, a part of an axis, 'b':(2)2)."""
    parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    shape, moved = list[int](), list[int]()
    for name, size in re.findall(r"'([^']+)'=(\d+)", mesh):
        split = sorted((int(before or 1), int(side or size)) for part, before, side in parts if part == name)
        done = 1
        for before, side in split:
            if before > done:
                shape.append(before // done)
            moved.append(len(shape))
            shape.append(side)
            done = before * side
        if done < int(size):
            shape.append(int(size) // done)
    still = [axis for axis in range(len(shape)) if axis not in moved]
    count = math.prod(shape[axis] for axis in moved)
    return np.arange(math.prod(shape)).reshape(shape).transpose([*still, *moved]).reshape(-1, count)


def seconds(kind: str, size: float, among: Group, network: Network) -> float:
    """Return the time of a transfer at the rate of the links, and of the network between slices."""
    if not among.axes:
        return 0.0
    if kind == "collective-permute":
        return size / (network.link if among.slices == 1 else network.network_bandwidth)
    inside = among.size // among.slices
    sent = _ROUNDS[kind] * size
    speed = sum(network.speed[axis] for axis in among.axes)
    across = sent * (among.slices - 1) / among.slices / inside / network.network_bandwidth
    return sent * (inside - 1) / inside / speed + across
