"""Programs with published speed still read as planning/calibration.py says."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from helpers import tiny
from lm_research.planning import compiled
from lm_research.planning.calibration import ANCHORS, factors
from lm_research.planning.reading import read
from lm_research.planning.topology import parse_topology


def test_factors_are_real_over_read() -> None:
    """The geometric mean over a chip's anchors; a chip without any has none."""
    found = factors("v5e")
    anchors = [one for one in ANCHORS if one.chip == "v5e"]
    assert found is not None
    assert found.cycles ** len(anchors) == pytest.approx(math.prod(one.mfu / one.cycles_mfu for one in anchors))
    assert found.roof ** len(anchors) == pytest.approx(math.prod(one.mfu / one.roof_mfu for one in anchors))
    assert factors("v4") is None


@pytest.mark.slow
def test_a_chain_of_products() -> None:
    """Three products of 8,192-wide matrices, 2 x 8192^3 operations each."""
    pytest.importorskip("libtpu")
    topology = parse_topology("v5e:2x2")
    mesh = compiled.topology_mesh(tiny.config("gpt2", train={"batch_size": 4}), topology)
    placed = NamedSharding(mesh, PartitionSpec())
    matrix = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16, sharding=placed)
    program = jax.jit(lambda x, w: x @ w @ w @ w).lower(matrix, matrix).compile()
    rates = compiled.machine(topology, mesh)
    one = read(program.as_text() or "", rates)
    assert one.flops == 3 * 2 * 8192**3
    anchor = ANCHORS[0]
    assert one.flops / rates.flops / one.roof_seconds == pytest.approx(anchor.roof_mfu, rel=0.02)
    assert one.flops / rates.flops / one.cycles_seconds == pytest.approx(anchor.cycles_mfu, rel=0.02)
