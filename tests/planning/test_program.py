"""Parsing of optimized modules, cut from the text of real ones or written in their form."""

from __future__ import annotations

import pytest

from lm_research.planning.cost import hbm_bytes
from lm_research.planning.program import arrays, executions, parse

LOOP = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = f32[8]{0:T(128)} get-tuple-element(%state), index=1
  %one = s32[]{:T(128)} constant(STEP)
  %next = s32[]{:T(128)} add(%i, %one)
  %y = f32[8]{0:T(128)} negate(%x)
  ROOT %out = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%next, %y)
}

%less (p.0: s32[], p.1: s32[]) -> pred[] {
  %p.0 = s32[]{:T(128)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  ROOT %lt = pred[]{:T(512)} compare(%p.0, %p.1), direction=WAY
}

%condition (state.1: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(LIMIT)
  %state.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %end = pred[]{:T(512)} fusion(%j, %limit), kind=kLoop, calls=%less
}

ENTRY %main (p0: f32[8]) -> f32[8] {
  %p0 = f32[8]{0:T(128)} parameter(0)
  %zero = s32[]{:T(128)} constant(START)
  %init = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%zero, %p0)
  %loop = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%init), condition=%condition, body=%bodyANNOTATION
  ROOT %result = f32[8]{0:T(128)} get-tuple-element(%loop), index=1
}
"""


def loop(limit: int, step: int = 1, start: int = 0, way: str = "LT", annotation: str = "") -> str:
    values = {"LIMIT": limit, "STEP": step, "START": start, "WAY": way, "ANNOTATION": annotation}
    text = LOOP
    for name, value in values.items():
        text = text.replace(name, str(value))
    return text


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (loop(12), 12),
        (loop(16, step=2), 8),  # windowed einsum: two pieces an iteration
        (loop(15, step=2), 8),  # 0, 2, ..., 14
        (loop(12, start=3), 9),
        (loop(12, way="LE"), 13),
        (loop(0, step=-1, start=5, way="GT"), 5),
        (loop(12, annotation=', backend_config={"known_trip_count":{"n":"7"}}'), 7),
    ],
)
def test_trip_counts(text: str, count: int) -> None:
    times = {one.instruction.name: one.times for one in executions(parse(text))}
    assert times["y"] == count and times["loop"] == 1


def test_instructions_of_fusions_and_conditions_do_not_run_by_themselves() -> None:
    names = {one.instruction.name for one in executions(parse(loop(3)))}
    assert "lt" not in names and "end" not in names


def test_a_kernel_of_several_lines_is_one_instruction() -> None:
    """Text of a Pallas kernel, with a line that begins with `}}`, does not end the computation."""
    kernel = """\
  %kernel = f32[8]{0:T(128)} custom-call(%p0), custom_call_target="tpu_custom_call", backend_config={"custom_call_config": {"body": "TUz
module {
}}, metadata={op_name="jit(step)/kernel"}
"""
    text = loop(3).replace("  %zero", kernel + "  %zero").replace("tuple(%zero, %p0)", "tuple(%zero, %kernel)")
    program = parse(text)
    entry = program.computations[program.entry]
    assert list(entry.instructions) == ["p0", "kernel", "zero", "init", "loop", "result"]
    assert entry.instructions["kernel"].attribute(r'op_name="([^"]*)"') == "jit(step)/kernel"


@pytest.mark.parametrize(
    ("text", "num_bytes", "padded"),
    [
        ("f32[3,5]{1,0:T(8,128)}", 60, 8 * 128 * 4),
        ("bf16[16,12,512,64]{3,2,1,0:T(8,128)(2,1)}", 16 * 12 * 512 * 64 * 2, 16 * 12 * 512 * 128 * 2),
        ("bf16[10,300]{0,1:T(8,128)(2,1)}", 6000, 304 * 128 * 2),  # the first dimension is minor
        ("pred[12,40]{1,0:T(32,128)(4,1)}", 480, 32 * 128),
        ("f32[1000]{0:T(1024)}", 4000, 4096),
        ("s4[8,128]{1,0:T(8,128)E(4)}", 512, 512),
        ("f8e4m3fn[4,8]", 32, 32),
        ("f32[]{:T(128)}", 4, 4),
    ],
)
def test_bytes_of_arrays(text: str, num_bytes: int, padded: int) -> None:
    """Tiles round the minor dimensions up: 8 x 128 elements of 32 bits, so a width of 64 takes 128."""
    (array,) = arrays(text)
    assert (array.num_bytes, array.padded_bytes) == (num_bytes, padded)


def test_memory_spaces_and_tuples() -> None:
    found = arrays("(f32[768]{0:T(1024)S(1)}, bf16[2,4]{1,0:T(8,128)(2,1)}, /*index=2*/u32[]{:S(2)})")
    assert [(one.dtype, one.space) for one in found] == [("f32", 1), ("bf16", 0), ("u32", 2)]


def test_asynchronous_slices_of_a_dump_are_those_of_a_text() -> None:
    """`compiled.as_text()` writes %s = ... slice-start(%p); the compiler's dump an async-start that calls a slice, which does not run on the core."""
    text = """\
HloModule jit_step

%wrapped (q: f32[512,768]) -> f32[128,768] {
  %q = f32[512,768]{1,0:T(8,128)} parameter(0)
  ROOT %slice.1 = f32[128,768]{1,0:T(8,128)S(1)} slice(%q), slice={[0:128], [0:768]}
}

ENTRY %main (p: f32[512,768]) -> f32[128,768] {
  %p = f32[512,768]{1,0:T(8,128)} parameter(0)
  %s = ((f32[512,768]{1,0:T(8,128)}), f32[128,768]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) async-start(%p), calls=%wrapped
  ROOT %done = f32[128,768]{1,0:T(8,128)S(1)} async-done(%s)
}
"""
    program = parse(text)
    assert [(one.instruction.name, one.instruction.opcode) for one in executions(program)] == [
        ("p", "parameter"),
        ("s", "slice-start"),
        ("done", "async-done"),
    ]
    entry = program.computations[program.entry]
    assert hbm_bytes(program, entry, entry.instructions["s"]) == 128 * 768 * 4  # read; written on the chip
