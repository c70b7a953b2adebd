"""Run by test_embedding.py in a separate process with eight simulated devices: `embedding_devices.py CONFIG_JSON FOLDER`.

Prints the loss of the first batch, and a digest of its gradient, on one device and on a mesh of eight.
"""

from __future__ import annotations

import json
import pathlib
import sys

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from lm_research import tasks
from lm_research.config import MeshConfig, resolve
from lm_research.data.sampler import BatchBuilder
from lm_research.parallel.batches import local_rows, to_global
from lm_research.parallel.mesh import make_mesh
from lm_research.parallel.rules import tree_shardings
from lm_research.training.step import loss_and_gradient


def main(path: str, folder: str) -> None:
    config = resolve(json.loads(pathlib.Path(path).read_text()))
    corpus = tasks.trainable_class(config).open_corpus(config, pathlib.Path(folder), lambda line: None)
    definition = tasks.define(config, corpus.tokenizer.size, corpus)
    task, size = tasks.build(config, corpus, definition.arch), config.train.batch_size
    batch = BatchBuilder(task.examples(corpus.train, "train"), size, 1, slice(0, size), 0)(0)
    params = jax.tree.map(np.asarray, definition.init(0))
    one = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), make_mesh(MeshConfig()).axis_names)
    meshes = {"one": one, "eight": make_mesh(MeshConfig(preset="fsdp", fsdp=4, data=2))}
    for name, mesh in meshes.items():
        jax.set_mesh(mesh)
        assert name == "one" or local_rows(mesh, size) == slice(0, size)
        placed = jax.device_put(params, tree_shardings(mesh, definition.shapes, definition.axes))
        run = jax.jit(lambda params, batch, key: loss_and_gradient(task, definition, params, batch, key))
        loss, sums, _, gradient = run(placed, to_global(mesh, batch, leading=1), jax.random.key(0))
        norms = [float(optax.tree.norm(part)) for part in jax.tree.leaves(gradient)]
        print(json.dumps({"mesh": name, "devices": mesh.size, "loss": float(loss), "norms": norms}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
