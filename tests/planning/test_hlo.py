"""Collectives counted in a module's text."""

from __future__ import annotations

import pytest

from lm_research.planning.compiled import reused_arguments
from lm_research.planning.hlo import transfers

MODULE = """\
HloModule jit_step, input_output_alias={ {0}: (0, {}, may-alias), {1}: (2, {}, may-alias) }, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(f32[] %a, f32[] %b)
}

%async_collective_fusion.1 (p: bf16[4,8]) -> bf16[16,8] {
  ROOT %gather.1 = bf16[16,8]{1,0} all-gather(bf16[4,8]{1,0} %p), channel_id=7, dimensions={0}
}

%body (state: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %f1 = bf16[16,8]{1,0} fusion(bf16[4,8]{1,0} %x), kind=kCustom, calls=%async_collective_fusion.1
  %f2 = bf16[16,8]{1,0} fusion(bf16[4,8]{1,0} %x), kind=kCustom, calls=%async_collective_fusion.1
  %gather.2 = bf16[16,8]{1,0} all-gather(bf16[4,8]{1,0} %x), channel_id=7, dimensions={0}
}

%condition (state: (s32[], bf16[4,8])) -> pred[] {
  ROOT %less = pred[] compare(s32[] %i, s32[] %n), direction=LT
}

ENTRY %main (p0: f32[8]) -> f32[8] {
  %loop = (s32[], bf16[4,8]) while((s32[], bf16[4,8]) %init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"24"}}
  ROOT %reduce = f32[8]{0} all-reduce(f32[8]{0} %p0), channel_id=9, replica_groups={}, to_apply=%sum
}
"""


def test_a_transfer_counts_once_per_channel_and_iteration() -> None:
    gather, reduce = transfers(MODULE)
    assert (gather.kind, gather.channels, gather.count) == ("all-gather", 1, 24)
    assert gather.array_bytes == 24 * 16 * 8 * 2 and gather.overlapped == 1
    assert (reduce.kind, reduce.channels, reduce.count, reduce.array_bytes) == ("all-reduce", 1, 1, 8 * 4)
    assert reduce.overlapped == 0


def test_arguments_aliased_by_results() -> None:
    assert reused_arguments(MODULE) == 2
    assert reused_arguments("HloModule jit_step, entry_computation_layout={()->f32[]}") == 0


def test_iterations_read_from_the_condition() -> None:
    """The TPU compiler omits the trip count: the counter's limit is in the loop's condition."""
    limit = "  %n = s32[]{:T(128)} constant(24)\n  ROOT %less"
    text = MODULE.replace("  ROOT %less", limit).replace(', backend_config={"known_trip_count":{"n":"24"}}', "")
    assert transfers(text) == transfers(MODULE)
    assert transfers(text.replace("constant(24)", "constant(5)"))[0].count == 5


def test_permutations_of_a_program_per_device_are_distinguished_by_name() -> None:
    """Those of jax.shard_map share channel 1."""
    lines = "".join(
        f"  %permute.{n} = (f32[4]{{0}}, f32[4]{{0}}) collective-permute-start(f32[4]{{0}} %x), channel_id=1\n"
        f"  %done.{n} = f32[4]{{0}} collective-permute-done(%permute.{n})\n"
        for n in (1, 2)
    )
    permute = transfers(MODULE.replace("ENTRY", "%other (p: f32[4]) -> f32[4] {\n" + lines + "}\n\nENTRY"))[-1]
    assert (permute.kind, permute.channels, permute.overlapped) == ("collective-permute", 2, 2)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("pred", 12),
        ("s4", 6),
        ("u8", 12),
        ("f8e4m3fn", 12),
        ("bf16", 24),
        ("f32", 48),
        ("f64", 96),
        ("c64", 96),
        ("c128", 192),
    ],
)
def test_sizes_of_arrays(kind: str, size: int) -> None:
    """Twelve elements of each type of xla_data.proto."""
    text = MODULE.replace(
        "%reduce = f32[8]{0} all-reduce(f32[8]{0} %p0)", f"%reduce = {kind}[3,4]{{1,0}} all-reduce({kind}[3,4] %p0)"
    )
    assert transfers(text)[1].array_bytes == size


NESTED = """\
HloModule jit_step

%inner (s: (s32[])) -> (s32[]) {
  %a = f32[2]{0} all-reduce(f32[2]{0} %x), channel_id=3, to_apply=%sum
}

%left (s: f32[2]) -> f32[2] {
  %b = f32[2]{0} all-to-all(f32[2]{0} %x), channel_id=4
}

%right (s: f32[2]) -> f32[2] {
  %c = f32[2]{0} all-to-all(f32[2]{0} %x), channel_id=5
}

%outer (s: (s32[])) -> (s32[]) {
  %w = (s32[]) while((s32[]) %s), condition=%less, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %f = f32[2] conditional(pred[] %p, f32[2] %x, f32[2] %y), branch_computations={%left, %right}
}

ENTRY %main (p0: f32[8]) -> f32[8] {
  %w = (s32[]) while((s32[]) %s), condition=%less, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %again = (s32[]) while((s32[]) %s), condition=%less, body=%inner, backend_config={"known_trip_count":{"n":"2"}}
}
"""


def test_loops_in_loops_multiply() -> None:
    """The inner sum runs 5 x 3 times, more often than the 2 of its other place; each branch may run every time."""
    reduce, exchange = transfers(NESTED)
    assert (reduce.kind, reduce.channels, reduce.count, reduce.array_bytes) == ("all-reduce", 1, 15, 15 * 8)
    assert (exchange.kind, exchange.channels, exchange.count, exchange.overlapped) == ("all-to-all", 2, 10, 0)


def test_transfers_of_shard_map_are_told_apart_by_their_operation() -> None:
    """All have channel 1."""
    lines = "".join(
        f'  %g.{n} = f32[4]{{0}} all-gather(f32[2]{{0}} %x), channel_id=1, metadata={{op_name="{name}"}}\n'
        for n, name in enumerate(("first", "second", "first"))
    )
    gathers = transfers(NESTED.replace("ENTRY", "%other (p: f32[4]) -> f32[4] {\n" + lines + "}\n\nENTRY"))[0]
    assert (gathers.kind, gathers.channels) == ("all-gather", 2)
