"""Mesh axes, bytes and times of collectives."""

from __future__ import annotations

import pytest

from lm_research.planning import communication
from lm_research.planning.communication import Group, Network
from lm_research.planning.program import Instruction, parse

# 32 devices: two slices of 4 x 4, with 2 links along fsdp and one along tensor.
SHAPE = {"data": 2, "fsdp": 4, "expert": 1, "context": 1, "tensor": 4}
SPEED = {"data": 50e9, "fsdp": 100e9, "expert": 50e9, "context": 50e9, "tensor": 50e9}
NETWORK = Network(SHAPE, SPEED, 50e9, slices=2, crossing="data", network_bandwidth=5e9)


def collective(attributes: str, kind: str = "all-gather", result: str = "f32[16]") -> Instruction:
    module = f"""\
HloModule m

ENTRY %main (p: f32[4]) -> f32[16] {{
  %p = f32[4]{{0}} parameter(0)
  ROOT %it = {result} {kind}(%p), channel_id=3, {attributes}, dimensions={{0}}
}}
"""
    return parse(module).computations["main"].instructions["it"]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", Group(4, ("tensor",))),
        ("{{0,4,8,12},{1,5,9,13}}", Group(4, ("fsdp",))),
        ("[8,4]<=[32]", Group(4, ("tensor",))),
        ("[8,4]<=[2,4,4]T(0,2,1)", Group(4, ("fsdp",))),
        ("[16,2]<=[2,16]T(1,0)", Group(2, ("data",), 2)),
        ("[1,32]<=[32]", Group(32, ("data", "fsdp", "tensor"), 2)),
        ("{}", Group(32, ("data", "fsdp", "tensor"), 2)),
        # The axes of a mesh that the partitioner names itself, in the order of the devices.
        ("mesh['axis_0'=32] {'axis_0'}", Group(32, ("data", "fsdp", "tensor"), 2)),
        ("mesh['a'=2,'b'=4,'c'=4] {'b'}", Group(4, ("fsdp",))),
        ("mesh['a'=8,'b'=4] {'b'}", Group(4, ("tensor",))),
        ("mesh['a'=2,'b'=4,'c'=4] {'b','c'}", Group(16, ("fsdp", "tensor"))),
        ("mesh['a'=32] {'a':(2)4}", Group(4, ("fsdp",))),  # a part of an axis: behind 2, of size 4
    ],
)
def test_groups(groups: str, expected: Group) -> None:
    """Device n of a mesh (2, 4, 4) has the coordinates (n // 16, n // 4 % 4, n % 4)."""
    assert communication.group(collective(f"replica_groups={groups}, use_global_device_ids=true"), NETWORK) == expected


def test_pairs() -> None:
    one = collective("source_target_pairs={{0,4},{4,8},{8,12},{12,0}}", "collective-permute-start")
    assert communication.group(one, NETWORK).axes == ("fsdp",)
    assert communication.kind_of(one) == "collective-permute"


@pytest.mark.parametrize(
    ("kind", "group", "expected"),
    [
        ("all-gather", Group(4, ("fsdp",)), 3 / 4 * 1e9 / 100e9),
        ("reduce-scatter", Group(4, ("tensor",)), 3 / 4 * 1e9 / 50e9),
        ("all-reduce", Group(4, ("fsdp",)), 2 * 3 / 4 * 1e9 / 100e9),
        ("all-reduce", Group(16, ("fsdp", "tensor")), 2 * 15 / 16 * 1e9 / 150e9),
        ("collective-permute", Group(2, ("fsdp",)), 1e9 / 50e9),
        ("all-reduce", Group(2, ("data",), 2), 2 * 1 / 2 * 1e9 / 5e9),  # all of it over the network
        ("all-reduce", Group(8, ("data", "fsdp"), 2), 2 * 3 / 4 * 1e9 / 150e9 + 2 * 1 / 2 * 1e9 / 4 / 5e9),
        ("all-reduce", Group(1, ()), 0),
    ],
)
def test_times(kind: str, group: Group, expected: float) -> None:
    """A ring of n sends (n - 1) / n of the gigabyte, an all-reduce twice; across slices only a share of each device."""
    assert communication.seconds(kind, 1e9, group, NETWORK) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "result", "expected"),
    [
        ("all-gather", "f32[16]{0}", 64),
        ("reduce-scatter", "f32[1]{0}", 16),
        ("all-gather-start", "(f32[4]{0}, f32[16]{0})", 64),
        ("all-reduce-start", "f32[4]{0}", 16),
        ("collective-permute-start", "(f32[4]{0}, f32[4]{0}, u32[]{:S(2)}, u32[]{:S(2)})", 16),
        ("all-reduce", "(pred[3,4]{1,0}, f8e4m3fn[5]{0}, s4[8]{0}, c128[1]{0})", 12 + 5 + 4 + 16),
    ],
)
def test_bytes(kind: str, result: str, expected: int) -> None:
    one = collective("replica_groups={}", kind, result)
    text = f"HloModule m\n\nENTRY %main (p: f32[4]) -> f32[16] {{\n  %p = f32[4]{{0}} parameter(0)\n  ROOT %it = {result} {kind}(%p)\n}}\n"
    assert communication.array_bytes(parse(text).computations["main"], one) == expected
