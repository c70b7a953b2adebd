"""`generate` of lm_research. `options`: dtype, of the products."""

from __future__ import annotations

from typing import Any

import jax
import jaxlib
import numpy as np

from experiments.benchmarks.generate import workload
from experiments.benchmarks.generate.worker import Generate, serve
from experiments.benchmarks.generate.workload import NEW, Row
from lm_research import config as config_lib
from lm_research.models.families import define_model
from lm_research.pretrained import LanguageModel


def build(row: Row, options: dict[str, Any]) -> tuple[Generate, dict[str, Any]]:
    model = dict(
        family="gpt2",
        hidden_size=row.width,
        num_layers=row.layers,
        num_heads=row.width // 64,
        intermediate_size=4 * row.width,
        vocab_size=workload.VOCAB_SIZE,
        max_length=workload.MAX_LENGTH,
        dtype=options["dtype"],
    )
    config = config_lib.resolve({"model": model, "objective": {"name": "causal_lm"}})
    definition = define_model(config.model, config.model.vocab_size)
    params = definition.init(0)
    lm = LanguageModel(definition, jax.block_until_ready(params), "gpt2", {})

    def generate(ids: np.ndarray) -> np.ndarray:
        return lm.generate(ids, max_new_tokens=NEW, num_beams=row.beams)

    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__}
    return generate, {"parameters": definition.num_params, "versions": versions}


if __name__ == "__main__":
    serve(build)
