"""Attention to sums of blocks: which positions belong to which block, in padded and packed rows, by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.attention.block_sums import block_sums
from lm_research.models.limits import invalid_reason


def architecture(**fields: object) -> Architecture:
    sizes = dict(vocab_size=11, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=8, max_length=16)
    return from_flat(**sizes | dict(positions="relative", window=4, block_sums=3) | fields)


@pytest.mark.parametrize(
    ("row", "blocks", "seen"),
    [
        # Two full blocks; the positions after them belong to the second.
        ("11111111", "00011111", "01"),
        # One block ends at a real position, the second; the other real ones belong to it too.
        ("11111000", "00000---", "0"),
        # Positions 2 and 5 are real ends of blocks; the positions after the second belong to it.
        ("01111111", "-0011111", "01"),
        # Only position 5 is: all belong to block 0, which is the only one that is seen.
        ("00011111", "---00000", "0"),
        # Too short for a block.
        ("11000000", "--------", ""),
        # Packed: each document has its own blocks.
        ("11111112", "0001111-", "01"),
        ("11112222", "00001111", None),
    ],
)
def test_positions_belong_to_the_last_full_block_at_most(row: str, blocks: str, seen: str | None) -> None:
    segments = jnp.asarray([[int(one) for one in row]])
    found = block_sums(segments, 3, jnp.zeros((4, 2)), 8)
    assert found is not None
    expected = [[one == str(block) for block in range(2)] for one in blocks]
    np.testing.assert_array_equal(found.members_BLG[0], expected)
    own = np.asarray(segments[0] == 1)
    visible = np.asarray(found.bias_BHLG[0, 0] > -1)
    if seen is not None:
        np.testing.assert_array_equal(visible[own], [[str(block) in seen for block in range(2)]] * own.sum())
    else:  # the first document sees block 0 only, the second block 1 only
        np.testing.assert_array_equal(visible, [[one == "1", one == "2"] for one in row])


def test_a_sequence_shorter_than_a_block_has_none() -> None:
    assert block_sums(jnp.ones((1, 2), jnp.int32), 3, jnp.zeros((4, 2)), 8) is None


@pytest.mark.parametrize("fields", [dict(causal=True), dict(positions="none"), dict(global_tokens=True)])
def test_other_layers_refuse_it(fields: dict) -> None:
    assert "block_sums=3, which requires" in invalid_reason(architecture(**fields))
    assert not invalid_reason(architecture())
