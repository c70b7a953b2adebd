"""Programs with published speed still read as planning/calibration.py says."""

from __future__ import annotations

import math
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from helpers import tiny
from helpers.compiled_plans import compiled as compile_config
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
    _, text = compiled.compile_program(jax.jit(lambda x, w: x @ w @ w @ w).lower(matrix, matrix))
    rates = compiled.machine(topology, mesh)
    one = read(text, rates)
    assert one.flops == 3 * 2 * 8192**3
    anchor = next(one for one in ANCHORS if one.program.startswith("products"))
    assert one.flops / rates.flops / one.roof_seconds == pytest.approx(anchor.roof_mfu, rel=0.02)
    assert one.flops / rates.flops / one.cycles_seconds == pytest.approx(anchor.cycles_mfu, rel=0.02)


# configs/v5e/16b.sh of MaxText, with the sizes that its base.yml gives a parameter scale of 16: 2 x 2,048 wide, 4 x 16 heads of 128,
# 4 x 7,168 in the feed-forward layers, 2 x 16 layers, 6 rows of 2,048 tokens per chip.
SIZES = {
    "model.hidden_size": 4096,
    "model.num_heads": 64,
    "model.head_size": 128,
    "model.intermediate_size": 28672,
    "model.num_layers": 32,
    "model.remat": "full",
    "model.scan_layers": "True",
    "data.max_length": 2048,
    "train.batch_size": 6 * 256,
    "train.accumulation_steps": 1,
    "mesh.preset": "fsdp",
}
LIBTPU_FLAGS = (
    "xla_tpu_enable_data_parallel_all_reduce_opt",
    "xla_tpu_data_parallel_opt_different_sized_ops",
    "xla_tpu_enable_async_collective_fusion",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
    "xla_tpu_enable_async_collective_fusion_multiple_steps",
    "xla_tpu_overlap_compute_collective_tc",
    "xla_enable_async_all_gather",
)


@pytest.mark.slow
def test_a_decoder_like_the_published_one(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("libtpu")
    flags = [f"--config.{key}={value}" for key, value in SIZES.items()]
    libtpu = " ".join(f"--{flag}=true" for flag in LIBTPU_FLAGS)
    step = compile_config("llama", "v5e:16x16", tmp_path, *flags, libtpu=libtpu)
    anchor = next(one for one in ANCHORS if "16b.sh" in one.program)
    assert step["roof_mfu"] == pytest.approx(anchor.roof_mfu, rel=0.02)
    assert step["cycles_mfu"] == pytest.approx(anchor.cycles_mfu, rel=0.02)
