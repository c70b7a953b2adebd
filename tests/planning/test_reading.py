"""The account of whole programs: small modules in the form of the TPU compiler's, with times from arithmetic."""

from __future__ import annotations

import pytest

from lm_research.planning.communication import Network
from lm_research.planning.reading import Reading, read
from lm_research.planning.schedule import KERNEL_RATE, Machine

# Round numbers: 1 TFLOP/s, 1 GB/s of HBM, 1 GHz, 16 devices on one axis with links of 10 GB/s in all.
AXES = ("data", "fsdp", "expert", "context", "tensor")
NETWORK = Network(dict.fromkeys(AXES, 1) | {"fsdp": 16}, dict.fromkeys(AXES, 10e9), 5e9)
MACHINE = Machine(1e12, 1e9, 1e9, NETWORK, 2e12)

TABLES = """\
FileNames
1 "/home/me/train.py"
2 "/opt/lm_research/models/heads.py"
3 "/opt/lm_research/models/layers.py"
4 "/opt/jax/numpy.py"

FunctionNames
1 "<module>"
2 "__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=2 end_column=9}
2 {file_name_id=2 function_name_id=2 line=20 end_line=20 column=2 end_column=9}
3 {file_name_id=3 function_name_id=2 line=30 end_line=30 column=2 end_column=9}
4 {file_name_id=4 function_name_id=2 line=40 end_line=40 column=2 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=4 parent_frame_id=4}

"""
HEAD = "HloModule jit_step, is_scheduled=true\n\n" + TABLES
SUM = """\
%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

"""
NEAR, FAR = "bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)}", "bf16[1024,1024]{1,0:T(8,128)(2,1)}"
PRODUCT = 2 * 1024**3 / 1e12  # seconds at peak
ARRAY = 2 * 1024**2  # bytes


def entry(*lines: str) -> Reading:
    *others, last = lines
    body = "\n".join([*(f"  {line}" for line in others), f"  ROOT {last}"])
    return read(f"{HEAD}{SUM}ENTRY %main (x: bf16[1024,1024]) -> bf16[1024,1024] {{\n{body}\n}}\n", MACHINE)


def product(name: str, left: str, right: str, cycles: int = 0, shape: str = NEAR, frame: int = 4) -> str:
    config = f', backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}' if cycles else ""
    meta = f', metadata={{op_name="jit(step)/mlp/dot_general" stack_frame_id={frame}}}'
    return f"%{name} = {shape} convolution(%{left}, %{right}), dim_labels=bf_io->bf{meta}{config}"


def test_a_product_takes_its_operations_its_bytes_or_the_estimated_cycles() -> None:
    one = entry(f"%x = {NEAR} parameter(0)", product("y", "x", "x"))
    assert one.flops == 2 * 1024**3 and one.hbm_bytes == 0
    assert one.roof_seconds == one.cycles_seconds == pytest.approx(PRODUCT)
    slow = entry(f"%x = {NEAR} parameter(0)", product("y", "x", "x", cycles=5_000_000))
    assert (slow.roof_seconds, slow.cycles_seconds) == (pytest.approx(PRODUCT), pytest.approx(5e-3))
    far = entry(f"%x = {FAR} parameter(0)", product("y", "x", "x", shape=FAR))
    assert far.hbm_bytes == 3 * ARRAY and far.roof_seconds == pytest.approx(3 * ARRAY / 1e9)


def test_products_of_8_bit_numbers_run_at_their_own_rate() -> None:
    """2 TFLOP/s, for operands that all have 8 bits."""
    for dtype in ("s8", "f8e4m3fn"):
        near = NEAR.replace("bf16", dtype)
        one = entry(f"%x = {near} parameter(0)", product("y", "x", "x"))
        assert one.flops == 2 * 1024**3 and one.roof_seconds == pytest.approx(PRODUCT / 2)
    near = NEAR.replace("bf16", "s8")
    mixed = entry(f"%x = {near} parameter(0)", f"%z = {NEAR} parameter(1)", product("y", "x", "z"))
    assert mixed.roof_seconds == pytest.approx(PRODUCT)


def test_cycles_that_the_compiler_cannot_estimate_do_not_count() -> None:
    """It writes the largest 64-bit integer."""
    one = entry(f"%x = {NEAR} parameter(0)", product("y", "x", "x", cycles=2**63 - 1))
    assert one.cycles_seconds == one.roof_seconds == pytest.approx(PRODUCT)


def test_a_line_is_the_innermost_of_the_package_and_its_caller() -> None:
    one = entry(f"%x = {NEAR} parameter(0)", product("y", "x", "x"), product("z", "y", "y", frame=2))
    assert {line.source for line in one.lines} == {
        "lm_research/models/layers.py:30 from models/heads.py:20",
        "lm_research/models/heads.py:20",
    }
    assert {line.operation for line in one.lines} == {"dot_general"}


GATHER = "channel_id=1, replica_groups=[1,16]<=[16], dimensions={0}, use_global_device_ids=true"
SENT = 15 / 16 * ARRAY / 10e9  # seconds of an all-gather that makes the array


def test_a_synchronous_collective_stops_everything() -> None:
    part = "bf16[64,1024]{1,0:T(8,128)(2,1)S(1)}"
    one = entry(f"%p = {part} parameter(0)", f"%x = {NEAR} all-gather(%p), {GATHER}", product("y", "x", "x"))
    assert one.synchronous_bytes == ARRAY
    assert one.roof_seconds == pytest.approx(SENT + PRODUCT)
    (transfer,) = one.transfers
    assert (transfer.kind, transfer.axes, transfer.devices, transfer.times) == ("all-gather", ("fsdp",), 16, 1)
    assert not transfer.overlapped and transfer.exposed_seconds == pytest.approx(SENT)


@pytest.mark.parametrize("products", [0, 1])
def test_an_asynchronous_collective_costs_what_it_exceeds(products: int) -> None:
    """The product takes 2.1 ms, the transfer 0.2 ms."""
    part = "bf16[64,1024]{1,0:T(8,128)(2,1)S(1)}"
    between = [product("z", "w", "w")] * products
    one = entry(
        f"%w = {NEAR} parameter(0)",
        f"%p = {part} parameter(1)",
        f"%start = ({part}, {NEAR}) all-gather-start(%p), {GATHER}",
        *between,
        f"%x = {NEAR} all-gather-done(%start)",
        product("y", "x", "x"),
    )
    assert one.transfers[0].overlapped and one.synchronous_bytes == 0
    assert one.roof_seconds == pytest.approx((1 + products) * PRODUCT + (0 if products else SENT))
    assert one.transfers[0].exposed_seconds == pytest.approx(0 if products else SENT)


def test_steps_of_a_collective_in_fusions_are_one_transfer() -> None:
    step = f"""\
%NAME (s0: bf16[64,1024], s1: bf16[1024,1024]) -> bf16[1024,1024] {{
  %s0 = bf16[64,1024]{{1,0:T(8,128)(2,1)S(1)}} parameter(0)
  %s1 = {NEAR} parameter(1)
  %g = {NEAR} all-gather(%s0), {GATHER}
  %e = {NEAR} custom-call(%g), custom_call_target="TARGET"
  ROOT %c = {NEAR} convolution(%s1, %s1), dim_labels=bf_io->bf
}}

"""
    names = {"start": "AsyncCollectiveStart", "step": "None", "done": "AsyncCollectiveDone"}
    fused = "".join(step.replace("NAME", name).replace("TARGET", target) for name, target in names.items())
    text = f"""\
{HEAD}{fused}ENTRY %main (x: bf16[1024,1024]) -> bf16[1024,1024] {{
  %p = bf16[64,1024]{{1,0:T(8,128)(2,1)S(1)}} parameter(0)
  %x = {NEAR} parameter(1)
  %f1 = {NEAR} fusion(%p, %x), kind=kCustom, calls=%start
  %f2 = {NEAR} fusion(%p, %f1), kind=kCustom, calls=%step
  ROOT %f3 = {NEAR} fusion(%p, %f2), kind=kCustom, calls=%done
}}
"""
    one = read(text, MACHINE)
    (transfer,) = one.transfers
    assert (transfer.times, transfer.overlapped, transfer.array_bytes) == (1, True, ARRAY)
    assert one.flops == 3 * 2 * 1024**3 and one.roof_seconds == pytest.approx(3 * PRODUCT)


def test_loops_multiply_and_stacks_move_by_slices() -> None:
    stack = "bf16[12,1024,1024]{2,1,0:T(8,128)(2,1)}"
    state = f"(s32[]{{:T(128)}}, {NEAR}, {stack})"
    text = f"""\
{HEAD}%write (w0: bf16[12,1024,1024], w1: bf16[1024,1024], w2: s32[]) -> bf16[12,1024,1024] {{
  %w0 = {stack} parameter(0)
  %w1 = {NEAR} parameter(1)
  %w2 = s32[]{{:T(128)S(6)}} parameter(2)
  %zero = s32[]{{:T(128)}} constant(0)
  %u = bf16[1,1024,1024]{{2,1,0:T(8,128)(2,1)}} bitcast(%w1)
  ROOT %dus = {stack} dynamic-update-slice(%w0, %u, %w2, %zero, %zero)
}}

%body (s: (s32[], bf16[1024,1024], bf16[12,1024,1024])) -> (s32[], bf16[1024,1024], bf16[12,1024,1024]) {{
  %s = {state} parameter(0)
  %i = s32[]{{:T(128)S(6)}} get-tuple-element(%s), index=0
  %x = {NEAR} get-tuple-element(%s), index=1
  %all = {stack} get-tuple-element(%s), index=2
  %one = s32[]{{:T(128)S(6)}} constant(1)
  %next = s32[]{{:T(128)S(6)}} add(%i, %one)
  {product("y", "x", "x")}
  %kept = {stack} fusion(%all, %y, %i), kind=kLoop, calls=%write, metadata={{op_name="jit(step)/while" stack_frame_id=2}}
  ROOT %out = {state} tuple(%next, %y, %kept)
}}

%condition (c: (s32[], bf16[1024,1024], bf16[12,1024,1024])) -> pred[] {{
  %c = {state} parameter(0)
  %j = s32[]{{:T(128)S(6)}} get-tuple-element(%c), index=0
  %n = s32[]{{:T(128)S(6)}} constant(12)
  ROOT %less = pred[]{{:T(512)}} compare(%j, %n), direction=LT
}}

ENTRY %main (x: bf16[1024,1024]) -> bf16[1024,1024] {{
  %x0 = {NEAR} parameter(0)
  %zero.1 = s32[]{{:T(128)S(6)}} constant(0)
  %space = {stack} custom-call(), custom_call_target="AllocateBuffer"
  %init = {state} tuple(%zero.1, %x0, %space)
  %loop = {state} while(%init), condition=%condition, body=%body
  ROOT %r = {NEAR} get-tuple-element(%loop), index=1
}}
"""
    one = read(text, MACHINE)
    assert one.flops == 12 * 2 * 1024**3
    assert one.hbm_bytes == 12 * ARRAY  # each iteration writes its slice
    assert one.roof_seconds == pytest.approx(12 * (PRODUCT + ARRAY / 1e9))
    (temporary,) = one.temporaries
    assert (temporary.array, temporary.num_bytes) == ("bf16[12,1024,1024]", 12 * ARRAY)
    assert temporary.source == "lm_research/models/layers.py:30 from models/heads.py:20"  # what is kept, not the loop


def test_arrays_in_float32_are_listed_unless_they_are_results() -> None:
    """A fusion of two results of 4 MiB each, of which the program returns the second."""
    wide = "f32[1024,1024]{1,0:T(8,128)}"
    body = f"""\
%two (p: bf16[1024,1024]) -> (f32[1024,1024], f32[1024,1024]) {{
  %p = {FAR} parameter(0)
  %w = {wide} convert(%p)
  ROOT %both = ({wide}, {wide}) tuple(%w, %w)
}}

"""
    text = f"""\
ENTRY %main (x: bf16[1024,1024]) -> (f32[1024,1024], bf16[1024,1024]) {{
  %x = {FAR} parameter(0)
  %f = ({wide}, {wide}) fusion(%x), kind=kLoop, calls=%two, metadata={{op_name="jit(step)/convert" stack_frame_id=2}}
  %left = {wide} get-tuple-element(%f), index=0
  %right = {wide} get-tuple-element(%f), index=1
  %y = {FAR} convert(%left), metadata={{op_name="jit(step)/y" stack_frame_id=4}}
  %z = {FAR} add(%y, %y)
  ROOT %out = ({wide}, {FAR}) tuple(%right, %z)
}}
"""
    one = read(HEAD + body + text, MACHINE)
    assert [t.array for t in one.temporaries] == ["f32[1024,1024]", "bf16[1024,1024]"]
    (found,) = one.float32()
    assert (found.instruction, found.count, found.num_bytes) == ("f", 1, 4 * 2**20)
    assert found.source == "lm_research/models/heads.py:20"


def test_copies_between_memories_overlap_but_share_the_bandwidth() -> None:
    """Three arrays of 2 MiB at 1 GB/s take 6.3 ms, the product only 2.1."""
    copies = [f"%c{n} = ({NEAR}, {FAR}, u32[]{{:S(2)}}) copy-start(%x{n})" for n in range(3)]
    done = [f"%d{n} = {NEAR} copy-done(%c{n})" for n in range(3)]
    one = entry(
        *(f"%x{n} = {FAR} parameter({n})" for n in range(3)),
        f"%w = {NEAR} parameter(3)",
        *copies,
        product("y", "w", "w"),
        *done,
    )
    assert one.roof_seconds == pytest.approx(3 * ARRAY / 1e9)


@pytest.mark.parametrize("flops", [10**9, 10**6])
def test_kernels_take_their_declared_cost_at_a_modest_rate(flops: int) -> None:
    declared = (
        f'{{"custom_call_config": {{"body": "TUz", "cost_estimate": {{"flops": {flops}, "bytes_accessed": 1000000}}}}}}'
    )
    one = entry(
        f"%x = {FAR} parameter(0)",
        f'%k = {FAR} custom-call(%x), custom_call_target="tpu_custom_call", backend_config={declared}',
    )
    (kernel,) = one.kernels
    assert kernel.declared and kernel.flops == flops
    assert one.roof_seconds == pytest.approx(max(flops / 1e12 / KERNEL_RATE, 1e6 / 1e9))
