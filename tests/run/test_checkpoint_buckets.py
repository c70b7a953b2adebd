"""Checkpoints in a bucket: saved and restored through a stand-in for Google Cloud Storage, which refuses some requests."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from helpers.gcs_server import Faults, GcsServer
from helpers.train_helpers import ROOT

pytest.importorskip("gcsfs")
# Separate, because the address of the stand-in is read once.
RUN = """
import jax, jax.numpy as jnp
from lm_research.common.paths import as_path
from lm_research.config import CheckpointConfig
from lm_research.run.checkpoint import Checkpoints

def state(step):
    return {"step": jnp.int32(step), "params": {"w": jnp.arange(10000.0) * step}, "halted": jnp.int32(-1)}

def opened():
    return Checkpoints(as_path("gs://bucket/run"), CheckpointConfig(keep=2), {"corpus.json": b"{}"})

with opened() as store:
    for step in (6, 12, 18):
        store.save(state(step))
    store.close()
store = opened()
here = jax.tree.map(lambda x: x.sharding, state(0))
found = store.resume(lambda step: store.restore(jax.eval_shape(lambda: state(0)), here, step), print)
print("resumed", int(found["step"]), bool((found["params"]["w"] == jnp.arange(10000.0) * 18).all()), store.steps)
store.close()
"""


@pytest.mark.slow
def test_a_bucket_that_refuses_some_requests(faults: float = 0.05) -> None:
    with GcsServer(faults=Faults(seed=1, share=faults, latency=0.02)) as server:
        settings = os.environ | server.environment | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", RUN], env=settings, capture_output=True, text=True, timeout=280)
        assert "resumed 18 True [12, 18]" in done.stdout, done.stderr
        assert server.counts["fault"] > 0
        assert {name.split("/")[2] for _, name in server.objects} == {"12", "18"}
