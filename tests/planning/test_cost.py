"""FLOPs and HBM bytes of instructions; the expected numbers are written as their arithmetic."""

from __future__ import annotations

import pytest

from lm_research.planning import cost
from lm_research.planning.program import Program, parse


def program(instruction: str, others: str = "") -> Program:
    """A module whose entry has operands of several shapes and one more instruction, %it."""
    return parse(f"""\
HloModule jit_step

{others}
ENTRY %main (a: bf16[8192,768]) -> bf16[8192,768] {{
  %a = bf16[8192,768]{{1,0:T(8,128)(2,1)}} parameter(0)
  %b = bf16[768,3072]{{1,0:T(8,128)(2,1)}} parameter(1)
  %q = bf16[16,12,512,64]{{3,2,1,0:T(8,128)(2,1)}} parameter(2)
  %k = bf16[16,12,512,64]{{3,2,1,0:T(8,128)(2,1)}} parameter(3)
  %stack = f32[12,16,512,768]{{3,2,1,0:T(8,128)}} parameter(4)
  %i = s32[]{{:T(128)}} parameter(5)
  %near = bf16[8192,768]{{1,0:T(8,128)(2,1)S(1)}} parameter(6)
  ROOT %it = {instruction}
}}
""")


def flops(instruction: str) -> float:
    one = program(instruction)
    entry = one.computations[one.entry]
    return cost.flops(entry, entry.instructions["it"])


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("bf16[8192,3072]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}", 2 * 8192 * 768 * 3072),
        ("bf16[8192,3072]{1,0} convolution(%a, %b), dim_labels=bf_io->bf", 2 * 8192 * 768 * 3072),
        # A product with two batch dimensions as XLA writes it: windows of 16 x 12 over inputs that are dilated as much, so that each
        # output meets one element.
        (
            "f32[16,12,512,512]{3,2,1,0} convolution(%q, %k), window={size=16x12 stride=15x11 lhs_dilate=16x12}, "
            "dim_labels=01bf_01oi->01bf",
            2 * 16 * 12 * 512 * 512 * 64,
        ),
    ],
)
def test_products(instruction: str, expected: int) -> None:
    assert flops(instruction) == expected


def test_taps_in_the_padding_do_not_count() -> None:
    """A 3-wide window over 5 elements with padding 1: 3 taps at 3 positions, 2 at both ends."""
    one = parse("""\
HloModule m

ENTRY %main (x: f32[2,5,4]) -> f32[2,5,8] {
  %x = f32[2,5,4]{2,1,0} parameter(0)
  %w = f32[3,4,8]{2,1,0} parameter(1)
  ROOT %it = f32[2,5,8]{2,1,0} convolution(%x, %w), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f
}
""")
    entry = one.computations["main"]
    assert cost.flops(entry, entry.instructions["it"]) == 2 * (2 * 4 * 8) * (3 * 3 + 2 * 2)


STACK = 12 * 16 * 512 * 768 * 4  # bytes; one layer is a twelfth
COMPUTATIONS = """\
%update (p0: f32[12,16,512,768], p1: s32[], p2: bf16[8192,768]) -> f32[12,16,512,768] {
  %p0 = f32[12,16,512,768]{3,2,1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %p2 = bf16[8192,768]{1,0:T(8,128)(2,1)} parameter(2)
  %wide = f32[8192,768]{1,0:T(8,128)} convert(%p2)
  %slice = f32[1,16,512,768]{3,2,1,0:T(8,128)} bitcast(%wide)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %dus = f32[12,16,512,768]{3,2,1,0:T(8,128)} dynamic-update-slice(%p0, %slice, %p1, %zero, %zero, /*index=5*/%zero)
}

%retile (r0: f32[12,16,512,768]) -> f32[12,16,512,768] {
  %r0 = f32[12,16,512,768]{3,2,1,0:T(8,128)} parameter(0)
  ROOT %r1 = f32[12,16,512,768]{3,2,1,0:T(4,128)} copy(%r0)
}

%read (s0: f32[12,16,512,768], s1: s32[]) -> f32[1,16,512,768] {
  %s0 = f32[12,16,512,768]{3,2,1,0:T(8,128)} parameter(0)
  %s1 = s32[]{:T(128)} parameter(1)
  %z = s32[]{:T(128)} constant(0)
  %view = f32[12,16,512,768]{3,2,1,0:T(4,128)} fusion(%s0), kind=kLoop, calls=%retile
  ROOT %ds = f32[1,16,512,768]{3,2,1,0:T(8,128)} dynamic-slice(%view, %s1, %z, %z, %z), dynamic_slice_sizes={1,16,512,768}
}
"""

COMPUTATIONS += """
%scatter (p0: f32[12,16,512,768], p1: s32[], p2: bf16[1,16,512,768]) -> f32[12,16,512,768] {
  %p0 = f32[12,16,512,768]{3,2,1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %p2 = bf16[1,16,512,768]{3,2,1,0:T(8,128)(2,1)} parameter(2)
  %wide = f32[1,16,512,768]{3,2,1,0:T(8,128)} convert(%p2)
  ROOT %out = f32[12,16,512,768]{3,2,1,0:T(8,128)} scatter(%p0, %p1, %wide), update_window_dims={1,2,3}, to_apply=%add
}
"""


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("bf16[8192,768]{1,0:T(8,128)(2,1)} negate(%a)", 2 * 8192 * 768 * 2),
        ("bf16[8192,768]{1,0:T(8,128)(2,1)S(1)} negate(%a)", 8192 * 768 * 2),  # the result stays in VMEM
        ("bf16[8192,768]{1,0:T(8,128)(2,1)S(1)} negate(%near)", 0),
        ("bf16[16,12,512,64]{3,2,1,0:T(8,128)(2,1)} negate(%q)", 2 * 16 * 12 * 512 * 128 * 2),  # 64 is padded to 128
        ("bf16[8192,768]{1,0:T(8,128)(2,1)} bitcast(%a)", 0),
        (
            "f32[1,16,512,768]{3,2,1,0:T(8,128)} dynamic-slice(%stack, %i, %i, %i, %i), dynamic_slice_sizes={1,16,512,768}",
            2 * STACK / 12,
        ),
        # The update is read in bfloat16 and written in float32; the rest of the stack stays.
        (
            "f32[12,16,512,768]{3,2,1,0:T(8,128)} fusion(%stack, %i, %a), kind=kLoop, calls=%update",
            8192 * 768 * 2 + STACK / 12 + 4,  # and the index
        ),
        ("f32[1,16,512,768]{3,2,1,0:T(8,128)} fusion(%stack, %i), kind=kLoop, calls=%read", 2 * STACK / 12 + 4),
        # Updates of one layer's size are read in bfloat16; its rows are read and written in float32.
        (
            "f32[12,16,512,768]{3,2,1,0:T(8,128)} fusion(%stack, %i, %a), kind=kCustom, calls=%scatter",
            8192 * 768 * 2 + 2 * STACK / 12 + 4,
        ),
        ("f32[12,16,512,768]{3,2,1,0:T(8,128)} scatter(%stack, %i, %a), to_apply=%add", 3 * 8192 * 768 * 2),
        (
            "(bf16[8192,768]{1,0:T(8,128)(2,1)S(1)}, bf16[8192,768]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%a)",
            8192 * 768 * 2,
        ),
    ],
)
def test_hbm_bytes(instruction: str, expected: float) -> None:
    one = program(instruction, COMPUTATIONS)
    entry = one.computations[one.entry]
    assert cost.hbm_bytes(one, entry, entry.instructions["it"]) == expected


def test_precision_of_products() -> None:
    """Float32 products take 3 or 6 products in bfloat16."""
    for precision, expected in (("highest", 6), ("high", 3), ("default", 1)):
        text = "f32[8192,3072]{1,0} convolution(%a, %b), dim_labels=bf_io->bf, operand_precision={PRECISION,PRECISION}"
        one = program(text.replace("PRECISION", precision))
        assert cost.passes(one.computations["main"].instructions["it"]) == expected
